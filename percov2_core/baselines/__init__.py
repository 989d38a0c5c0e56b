"""Other codecs behind the two calls that ours has: `encode(image, quality)`, `decode(bytes)`."""

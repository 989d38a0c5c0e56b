"""Other codecs, each behind two calls: `encode(image, quality)` and `decode(bytes)`."""

# What the command line calls them, and what people do.
CLASSIC = {
    "jpeg": "JPEG",
    "jpeg2000": "JPEG 2000 (JP2)",
    "j2k": "JPEG 2000",
    "webp": "WebP",
    "avif": "AVIF",
    "jxl": "JPEG XL",
    "vvc": "VVC intra",
}

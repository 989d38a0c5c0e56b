"""From a picture to a caption, and from a caption to bytes."""

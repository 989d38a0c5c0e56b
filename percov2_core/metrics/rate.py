"""Rate: from the length of the real file, and from nothing else."""

from __future__ import annotations


def bits_per_pixel(size_bytes: int, width_px: int, height_px: int) -> float:
    """Bits of the whole file, header included, per pixel of the picture."""
    return 8 * size_bytes / (width_px * height_px)

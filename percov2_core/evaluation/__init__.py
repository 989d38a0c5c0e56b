"""Measuring codecs on a folder of pictures: one row per codec, setting and picture."""

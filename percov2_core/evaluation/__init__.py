"""Codecs x settings x pictures -> rows."""

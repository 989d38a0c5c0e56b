"""Spacefile -> front matter of README.md, and plan (files, settings) -> a running Space."""

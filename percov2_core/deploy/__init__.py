"""Spacefile -> hosted Space: read it, list the files, publish them.

Spacefile -> manifest -> front matter of README.md
                      -> plan (files, settings) -> publish -> a running Space
"""

"""Datasets that are made, or unpacked, on the user's machine."""

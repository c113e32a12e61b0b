"""Decoding while one speaks."""

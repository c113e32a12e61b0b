"""Whisper's graphs."""

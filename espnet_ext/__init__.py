"""Compression methods for speech encoders, as extensions of ESPnet's trainers."""

__version__ = "0.1.0"

"""Decoding with deployed models."""

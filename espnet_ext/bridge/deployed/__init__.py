"""Deployed models: what they are, and how they lie on disk."""

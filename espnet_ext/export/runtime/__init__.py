"""Runs exported folders, without torch; part of it is copied into them."""

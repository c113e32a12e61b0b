"""Models whose graphs torch traces."""

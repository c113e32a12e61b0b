"""Training configs: checked, and what their models cost."""

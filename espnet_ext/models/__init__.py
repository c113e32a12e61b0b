import espnet_ext.unchecked  # noqa: F401  (before ESPnet)

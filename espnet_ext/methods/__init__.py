"""Compression methods. Importing the package fills ``registry.METHODS``."""

from espnet_ext.methods import hrf, nested, residual  # noqa: F401  (each registers its method)

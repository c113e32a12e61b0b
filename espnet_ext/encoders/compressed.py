"""ESPnet's encoders with a compression method applied: ``hrf_conformer`` and the like.

No encoder is copied: the class is ESPnet's own, built, and then handed to the method.
"""

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn

from espnet_ext.methods.registry import METHODS, Method
from espnet_ext.methods.sites import is_linear


def compressed_encoder(base: type[nn.Module], method: Method) -> type[nn.Module]:
    """Return a subclass of ESPnet encoder ``base`` that takes the method's options too.

    The options stand in ``encoder_conf`` under the method's name, beside the keys of ``base``.
    """

    class Compressed(base):  # type: ignore[misc,valid-type]
        def __init__(self, input_size: int, **conf: Any):
            options = method.parse(conf.pop(method.name, None))
            super().__init__(input_size, **conf)
            self.method_options = options
            method.apply(self, options)

        def compress_head(self, head: nn.Module) -> None:
            """Apply the method to the classifier or CTC output if ``cls`` is among its sites."""
            if {"cls", "all"} & set(getattr(self.method_options, "sites", ())):
                for layer in head.modules():
                    if is_linear(layer):
                        method.apply_layer(layer, self.method_options)

    Compressed.__name__ = Compressed.__qualname__ = f"{method.name.upper()}{base.__name__}"
    Compressed.__signature__ = _signature(base, method)  # type: ignore[attr-defined]
    return Compressed


def _signature(base: type, method: Method) -> inspect.Signature:
    """The constructor's signature as ``check`` and ``help`` shall see it."""
    own = inspect.Parameter(method.name, inspect.Parameter.KEYWORD_ONLY, default=None)
    base_signature = inspect.signature(base)
    return base_signature.replace(parameters=[*base_signature.parameters.values(), own])


def compressed_choices(bases: dict[str, type], recurrent: Collection[str]) -> dict[str, type]:
    """Return ``{"<method>_<encoder>": class}`` for every method and every base encoder.

    Of bases that are named ``recurrent``, and of any, only those that a method can be applied to.
    """
    return {
        f"{method.name}_{name}": compressed_encoder(base, method)
        for method in METHODS.values()
        for name, base in bases.items()
        if method.fits(name, name in recurrent)
    }

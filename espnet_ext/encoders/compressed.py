"""ESPnet's encoders with a compression method applied: ``hrf_conformer`` and the like.

No encoder is copied: a class here builds ESPnet's encoder and then applies the method to it.
"""

import inspect
from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from torch import nn

from espnet_ext.methods.registry import METHODS, Method, chosen_methods
from espnet_ext.methods.sites import is_linear
from espnet_ext.methods.start import application_order, starts_from_plain


@runtime_checkable
class CompressesHead(Protocol):
    """An encoder whose method can be applied to the head, which is outside the encoder."""

    def compress_head(self, head: nn.Module) -> None:
        """Apply the method to the linear layers of ``head`` if ``cls`` is among its sites."""
        ...


def compress_head(encoder: nn.Module, head: nn.Module) -> None:
    """Apply the method of ``encoder``, if it has one, to a classifier or CTC output, in place."""
    if isinstance(encoder, CompressesHead):
        encoder.compress_head(head)


def compressed_encoder(base: type[nn.Module], method: Method) -> type[nn.Module]:
    """Return a subclass of the ESPnet encoder ``base`` that accepts the method's options too.

    The options are a section of ``encoder_conf``, named like the method. Sections of other methods
    are of further methods on the same layers.
    """

    class Compressed(base):  # type: ignore[misc,valid-type]
        def __init__(self, input_size: int, **conf: Any):
            sections = {name: conf.pop(name) for name in METHODS.keys() & conf.keys()}
            sections[method.name] = sections.get(method.name) or {}  # null: its defaults
            chosen = chosen_methods(sections)
            super().__init__(input_size, **conf)
            self.methods = application_order(chosen)
            for other, options in self.methods:
                other.apply(self, options)
            starts_from_plain(self)

        def compress_head(self, head: nn.Module) -> None:
            for other, options in self.methods:
                if {"cls", "all"} & set(getattr(options, "sites", ())):
                    for layer in filter(is_linear, list(head.modules())):
                        other.apply_layer(layer, options)

    Compressed.__name__ = Compressed.__qualname__ = f"{method.name.upper()}{base.__name__}"
    Compressed.__signature__ = _signature(base, method)  # type: ignore[attr-defined]
    return Compressed


def _signature(base: type, method: Method) -> inspect.Signature:
    """The signature of ``base`` plus the methods' sections, for ``check`` and ``help``."""
    names = [method.name, *(name for name in METHODS if name != method.name)]
    sections = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in names]
    signature = inspect.signature(base)
    return signature.replace(parameters=[*signature.parameters.values(), *sections])


def compressed_choices(bases: dict[str, type], recurrent: Collection[str]) -> dict[str, type]:
    """Return ``{"<method>_<encoder>": class}`` for every method and every base that it fits.

    ``recurrent`` are the names of the bases with recurrent layers.
    """
    return {
        f"{method.name}_{name}": compressed_encoder(base, method)
        for method in METHODS.values()
        for name, base in bases.items()
        if method.fits(name, name in recurrent)
    }

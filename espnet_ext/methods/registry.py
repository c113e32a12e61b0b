"""The compression methods by name. Each method file ends in its ``register`` call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from espnet_ext.methods.options import Options


@dataclass(frozen=True)
class Method:
    """A compression method: options, and functions that parametrize weights in place."""

    name: str  # as in <name>_conformer and encoder_conf: {<name>: ...}
    options: type[Options]
    apply: Callable[[nn.Module, Any], nn.Module]  # to the layers at the options' sites
    apply_layer: Callable[[nn.Module, Any], None]  # to one layer (the head is outside the encoder)
    paper: str
    recurrent: bool = False  # fits encoders of recurrent layers
    bases: tuple[str, ...] | None = None  # the only encoders that it fits
    # see ``methods.start``; None: it does not start from plain layers
    start: Callable[[nn.Module, dict[str, Tensor], str], list[str]] | None = None
    place: int = 1  # among the methods of one layer, see ``methods.chains``

    def fits(self, base: str, recurrent: bool) -> bool:
        """True if it can be applied to the encoder ``base``, whose layers may be recurrent."""
        return (self.recurrent or not recurrent) and (self.bases is None or base in self.bases)

    def parse(self, conf: Any) -> Any:
        """Build the options from a section of a config, None for the defaults."""
        return self.options.parse({} if conf is None else conf)


METHODS: dict[str, Method] = {}


def chosen_methods(sections: Mapping[str, Any]) -> list[tuple[Method, Any]]:
    """Methods with their options, of the sections of a config by name; one that is null is none."""
    given = {name: section for name, section in sections.items() if section is not None}
    return [(METHODS[name], METHODS[name].parse(section)) for name, section in given.items()]


def register(method: Method) -> None:
    """Add a method; its name must be new and lower case (ESPnet lower-cases choices)."""
    if method.name != method.name.lower() or method.name in METHODS:
        raise ValueError(f"method name {method.name!r} is already in use or not lower case")
    METHODS[method.name] = method

"""The compression methods by name. A new method is one ``register`` call.

What a method must provide: a frozen dataclass of options that checks itself, and a function
that applies it to a module in place by registering parametrizations on weights. The
contract tests run over ``METHODS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.hrf import HRFOptions, apply_hrf, factorize
from espnet_ext.methods.nested import apply_nested, nest_layer
from espnet_ext.methods.nested_options import NestedOptions
from espnet_ext.methods.residual import ResidualOptions, apply_residual, share_layer


@dataclass(frozen=True)
class Method:
    """A compression method."""

    name: str
    options: type
    apply: Callable[[nn.Module, Any], nn.Module]  # to the layers at the options' sites
    apply_layer: Callable[[nn.Module, Any], None]  # to one layer (the head is outside)
    paper: str
    recurrent: bool = False  # may be applied to encoders of recurrent layers
    bases: tuple[str, ...] | None = None  # the only encoders that it may be applied to
    trials: tuple[dict, ...] = field(default=({},))  # options that the contract tests use

    def fits(self, base: str, recurrent: bool) -> bool:
        """True if it may be applied to the encoder ``base``, whose layers may be recurrent."""
        return (self.recurrent or not recurrent) and (self.bases is None or base in self.bases)

    def parse(self, options: dict | None) -> Any:
        """Build the options dataclass from a config mapping.

        Raises:
            UserError: an option is unknown or has a wrong value.
        """
        if options is not None and not isinstance(options, Mapping):
            raise UserError(f"{self.name}: expected options as keys and values, not {options!r}")
        known = {f.name for f in fields(self.options)}
        for key in options or {}:
            if key not in known:
                raise UserError(f"unknown option of {self.name}: {nearest(str(key), known)}")
        return self.options(**(options or {}))


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method; its name must be new and lower case (ESPnet lower-cases choices)."""
    if method.name != method.name.lower() or method.name in METHODS:
        raise ValueError(f"method name {method.name!r} is taken or not lower case")
    METHODS[method.name] = method


register(
    Method(
        name="hrf",
        options=HRFOptions,
        apply=apply_hrf,
        apply_layer=factorize,
        paper="arXiv 2411.09339",
        recurrent=True,
        trials=(
            {},
            {"sites": ["ffn"], "ratio": 2, "factors": 3},
            {"sites": ["qkv", "project"], "ratio": 1.5},
            {"sites": ["all"], "ratio": 2},
            {"sites": ["wide_conv"], "ratio": 1.5, "factors": 3},
            {"sites": ["recurrent"], "ratio": 2},
        ),
    )
)

register(
    Method(
        name="residual",
        options=ResidualOptions,
        apply=apply_residual,
        apply_layer=share_layer,
        paper="arXiv 2310.02489",
        trials=(
            {"share": 2, "rank": 4},
            {"share": 2, "rank": 0, "diagonal": False},
            {"share": 2, "rank": 3, "diagonal": False, "sites": ["qkv"]},
            {"share": 2, "rank": 0, "sites": ["ffn", "conv"]},
        ),
    )
)

register(
    Method(
        name="nested",
        options=NestedOptions,
        apply=apply_nested,
        apply_layer=nest_layer,
        paper="arXiv 2406.10160",
        bases=("conformer", "transformer", "e_branchformer"),
        trials=(
            {"depths": [2, 1], "widths": [24, 10], "bits": [32, 8, 4]},
            {"depths": [3, [1, 2]], "widths": [24, 10], "bits": [8]},
            {"depths": [2, [1]], "bits": [8, 2], "per": "tensor"},
            {"bits": [8], "scale": "learnt"},
            {"widths": [24, 1], "bits": [4], "scale": "learnt", "per": "tensor"},
        ),
    )
)

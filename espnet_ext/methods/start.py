"""Starting a method from trained plain layers: their weights become its parameters.

A method's ``start`` changes a state dict. Where this has the plain name of a weight that the method
computes (``w_1.weight``), the parameters of the method replace it
(``w_1.parametrizations.weight.original0``, ...). A state of the method itself is left as it is.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from espnet_ext.methods.chains import ROUNDING
from espnet_ext.methods.registry import METHODS, Method


def start_from_plain(module: nn.Module, state: dict[str, Tensor], prefix: str = "") -> list[str]:
    """Change the state of plain layers into that of the methods in ``module``, in place.

    Args:
        module: with layers whose weights methods compute.
        state: tensors by name; where it has both names of a tensor, the plain one is used.
        prefix: of the module's names, with its dot.

    Returns:
        What there is to say about how near the start is, one line each.
    """
    lines = []
    # What computes a weight last leaves the plain names of its inputs to what comes before.
    for method in sorted(METHODS.values(), key=lambda method: -method.place):
        if method.start is not None:
            lines += method.start(module, state, prefix)
    return lines


def starts_from_plain(module: nn.Module) -> None:
    """Let ``module.load_state_dict`` accept the state of plain layers too."""
    module.register_load_state_dict_pre_hook(_before_loading)


def application_order(methods: Iterable[tuple[Method, Any]]) -> list[tuple[Method, Any]]:
    """Sort methods with their options; a family comes last: it rounds what the others compute."""
    return sorted(methods, key=lambda one: (one[0].place == ROUNDING, one[0].place))


def apply_to_trained(module: nn.Module, *methods: tuple[Method, Any]) -> list[str]:
    """Apply methods to a trained module, in place; they start as near to it as they can.

    Args:
        module: of plain layers.
        methods: with their options.

    Returns:
        The lines of ``start_from_plain``.
    """
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for method, options in application_order(methods):
        method.apply(module, options)
    lines = start_from_plain(module, state)
    # Else the weights are loaded later.
    if all(getattr(options, "form", "train") == "train" for _, options in methods):
        module.load_state_dict(state)
    starts_from_plain(module)
    return lines


def _before_loading(module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    start_from_plain(module, state, prefix)

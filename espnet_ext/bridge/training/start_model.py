"""``init_param``: a model to start from, checked before the training starts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_ext.bridge.checkpoint import ties
from espnet_ext.config.pretrained import Start
from espnet_ext.errors import UserError
from espnet_ext.formats.digests import refuse_changed
from espnet_ext.formats.state_dict import load_state
from espnet_ext.methods.start import start_from_plain

# Parameters that a residual model adds to the sharing-only model that it starts from.
_NEW = (".down", ".up", ".diagonal")


def refuse_other_start(model: nn.Module, starts: Sequence[Start]) -> list[str]:
    """Compare the models to start from with the one to train.

    ESPnet would load a model of other groups as it is, each group with the weights of its
    last layer.

    Args:
        model: the training model.
        starts: checkpoints, and which part of them goes where.

    Returns:
        What there is to say about the start, one line each.

    Raises:
        UserError: no such file, another architecture, or weights that differ where ``model``
            shares one.
    """
    lines = []
    for start in starts:
        state = _taken(load_state(start.path), start)
        refuse_changed(start.path)
        module = _part(model, start)
        lines += start_from_plain(module, state)
        expected = module.state_dict()
        named = f" {start.source}" if start.source else ""
        where = f"init_param: {start.path}{named} is of another model:"
        for name in expected if start.is_whole else ():
            if name not in state and not name.endswith(_NEW):
                raise UserError(f"{where} it lacks {name}")
        _compare(state, expected, where)
        for name, first in ties(module).items():
            if first in state and name in state and not torch.equal(state[first], state[name]):
                raise UserError(f"{where} its {first} and {name} differ, here they are shared")
    return lines


def _taken(state: Mapping[str, Tensor], start: Start) -> dict[str, Tensor]:
    """The tensors that ESPnet takes from a checkpoint, by their names in the target."""
    kept = {n: t for n, t in state.items() if not (start.exclude and n.startswith(start.exclude))}
    if not start.source:
        return kept
    inside = f"{start.source}."
    found = {n.removeprefix(inside): t for n, t in kept.items() if n.startswith(inside)}
    if not found:
        raise UserError(f"init_param: {start.path} has no {start.source}")
    return found


def _part(model: nn.Module, start: Start) -> nn.Module:
    """The part of the model that a start goes to."""
    try:
        return model.get_submodule(start.target)
    except AttributeError:
        raise UserError(f"init_param: {start.path}: the config makes no {start.target}") from None


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse a tensor that the config does not make, or makes with another shape."""
    for name, tensor in state.items():
        if name not in expected:
            raise UserError(f"{where} it holds {name}, the config makes none")
        if expected[name].shape != tensor.shape:
            raise UserError(
                f"{where} {name} has shape {tuple(tensor.shape)}, "
                f"the config makes {tuple(expected[name].shape)}"
            )

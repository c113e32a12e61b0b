"""``init_param``: a model to start from, checked before the training starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
        state = load_state(start.path)
        refuse_changed(start.path)
        if start.is_whole:
            lines += _refuse_other_whole(model, state, start.path)
        else:
            _refuse_other_part(model, state, start)
    return lines


def _refuse_other_whole(model: nn.Module, state: dict[str, Tensor], path: Path) -> list[str]:
    expected = model.state_dict()
    lines = start_from_plain(model, state)
    where = f"init_param: {path} is of another model:"
    for name in expected:
        if name not in state and not name.endswith(_NEW):
            raise UserError(f"{where} it lacks {name}")
    _compare(state, expected, where)
    for name, first in ties(model).items():
        if first in state and not torch.equal(state[first], state[name]):
            raise UserError(f"{where} its {first} and {name} differ, here they are shared")
    return lines


def _refuse_other_part(model: nn.Module, state: dict[str, Tensor], start: Start) -> None:
    """Refuse a part of a checkpoint that ESPnet could not load into a part of the model."""
    where = f"init_param: {start.path}"
    kept = {n: t for n, t in state.items() if not n.startswith(start.exclude or "\0")}
    found = {
        n.removeprefix(f"{start.source}."): t for n, t in kept.items() if _is_in(n, start.source)
    }
    if not found:
        raise UserError(f"{where} has no {start.source}")
    names = {n: t for n, t in model.state_dict().items() if _is_in(n, start.target)}
    if not names:
        raise UserError(f"{where}: the config makes no {start.target}")
    expected = {name.removeprefix(f"{start.target}."): tensor for name, tensor in names.items()}
    part = start.source or "its model"
    _compare(found, expected, f"{where}: {part} is of another model:")


def _is_in(name: str, part: str) -> bool:
    return not part or name.startswith(f"{part}.")


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

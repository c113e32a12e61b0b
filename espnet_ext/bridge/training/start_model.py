"""``init_param``: a model to start from, checked before the training starts."""

from pathlib import Path

import torch
from torch import nn

from espnet_ext.bridge.checkpoint import ties
from espnet_ext.errors import UserError
from espnet_ext.formats.digests import refuse_changed
from espnet_ext.formats.state_dict import load_state
from espnet_ext.methods.start import start_from_plain

# Parameters that a residual model adds to the sharing-only model that it starts from.
_NEW = (".down", ".up", ".diagonal")


def refuse_other_start(model: nn.Module, checkpoints: list[Path]) -> list[str]:
    """Compare the models to start from with the one to train.

    ESPnet would load a model of other groups as it is, each group with the weights of its
    last layer.

    Args:
        model: the training model.
        checkpoints: whole models.

    Returns:
        What there is to say about the start, one line each.

    Raises:
        UserError: no such file, another architecture, or weights that differ where ``model``
            shares one.
    """
    expected = model.state_dict()
    shared = ties(model)
    lines = []
    for path in checkpoints:
        state = load_state(path)
        refuse_changed(path)
        lines += start_from_plain(model, state)
        where = f"init_param: {path} is of another model:"
        for name in expected:
            if name not in state and not name.endswith(_NEW):
                raise UserError(f"{where} it lacks {name}")
        for name, tensor in state.items():
            if name not in expected:
                raise UserError(f"{where} it holds {name}, the config makes none")
            if expected[name].shape != tensor.shape:
                raise UserError(
                    f"{where} {name} has shape {tuple(tensor.shape)}, "
                    f"the config makes {tuple(expected[name].shape)}"
                )
        for name, first in shared.items():
            if first in state and not torch.equal(state[first], state[name]):
                raise UserError(f"{where} its {first} and {name} differ, here they are shared")
    return lines

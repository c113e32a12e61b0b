"""Checkpoints: loaded strictly, and written as deployed models.

ESPnet's loader accepts any file (``strict=False``): with a checkpoint of another architecture the
model silently keeps random weights.
"""

import argparse
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_ext.bridge.muted import muted
from espnet_ext.bridge.registry import TASKS, install, task_of
from espnet_ext.errors import UserError
from espnet_ext.files import PACKED, atomic_path
from espnet_ext.formats import digests
from espnet_ext.formats.building import building
from espnet_ext.formats.packed import dequantised, read_member
from espnet_ext.formats.state_dict import compare_state, load_state
from espnet_ext.methods.deploy import check_finite
from espnet_ext.methods.residual_weight import ResidualWeight

install()


def serialised(obj: Any, **options: Any) -> memoryview:
    """The bytes that ``torch.save`` writes to a stream; a file would contain its name."""
    written = io.BytesIO()
    torch.save(obj, written, **options)
    return written.getbuffer()


def save(obj: Any, path: str | os.PathLike, **options: Any) -> None:
    """``torch.save``, whole or not at all, and with an OSError if the disk is full.

    torch itself would raise a RuntimeError that says "unexpected pos".
    """
    write(serialised(obj, **options), path)


def write(content: memoryview, path: str | os.PathLike) -> None:
    """Write the bytes of a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def deployed_bytes(model: nn.Module, variant: str) -> memoryview:
    """The content of a deployed model's file, which ``torch.load`` reads.

    In the variant ``shared`` the names of the tensors are compressed: uncompressed, those of
    hundreds of small tensors would add 3 % to a file of 4 MB.
    """
    content = serialised(file_state(model, variant))
    if variant != ResidualWeight.variant:
        return content
    smaller = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(smaller, "w") as made:
        for entry in given.infolist():
            again = zipfile.ZipInfo(entry.filename)  # without a date: equal models, equal files
            if Path(entry.filename).name == "data.pkl":
                again.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(again, given.read(entry))
    return smaller.getbuffer()


def ties(model: nn.Module) -> dict[str, str]:
    """The second and later names of each parameter of ``model``, with its first name."""
    first: dict[int, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            names[name] = first[id(parameter)]
    return names


def file_state(model: nn.Module, variant: str) -> dict[str, torch.Tensor]:
    """The state dict of a deployed model's file.

    In the variant ``shared`` each tensor has one name, and all float32 tensors are parts of one
    storage: separate records of hundreds of small tensors would add 3 % to a file of 4 MB.
    ESPnet loads the file like any other, since the model that it builds shares the tensors.
    """
    state = model.state_dict()
    if variant != ResidualWeight.variant:
        return state
    others = ties(model)
    kept = {name: tensor for name, tensor in state.items() if name not in others}
    packed = {name: t.detach() for name, t in kept.items() if t.dtype == torch.float32}
    storage = torch.cat([t.flatten() for t in packed.values()])
    parts = storage.split([t.numel() for t in packed.values()])
    views = zip(packed.items(), parts, strict=True)
    return {**kept, **{name: part.view(t.shape) for (name, t), part in views}}


def expand_state(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` with an entry for every name that a shared tensor has in ``model``."""
    more = {n: state[first] for n, first in ties(model).items() if first in state}
    return {**more, **state}


def build(arguments: Mapping[str, Any]) -> nn.Module:
    """Build ESPnet's model from the contents of its config.yaml."""
    with muted():
        return TASKS[task_of(arguments)].build_model(argparse.Namespace(**arguments))


def build_for(
    arguments: Mapping[str, Any], state: Mapping[str, torch.Tensor], path: Path
) -> nn.Module:
    """Build the model of a config that was read from ``path``, to be filled with ``state``.

    Raises:
        UserError: it does not build, or is many times as large as the state.
    """
    with building(state, path):
        return build(arguments)


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.yaml of an experiment, or of a deployed model.

    Raises:
        UserError: no such file, or an error of ``digests.read_config``.
    """
    if not path.is_file():
        raise UserError(f"no {path}; run stage 4")
    return digests.read_config(path)


def load_model(config: Path, checkpoint: Path) -> nn.Module:
    """Build the model of an ESPnet config.yaml and load a checkpoint into it, strictly.

    Raises:
        UserError: another architecture, unreadable or changed file, weights that are not finite.
    """
    arguments, state = read_config(config), read_weights(checkpoint)
    model = build_for(arguments, state, config)
    fill(model, state, checkpoint)
    return model.eval()


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint, or the packed file of a deployed model.

    Raises:
        UserError: as ``load_model``.
    """
    if checkpoint.name == PACKED:
        return dequantised(read_member(checkpoint))
    return load_state(checkpoint)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load what ``read_weights`` reads into a model, strictly.

    Raises:
        UserError: as ``load_model``.
    """
    fill(model, read_weights(checkpoint), checkpoint)


def fill(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a state that was read from ``path`` into a model, strictly.

    Raises:
        UserError: another architecture, weights that are not finite, or a file that was changed
            after it was deployed.
    """
    state = expand_state(model, state)
    compare_state(model, state, path)
    model.load_state_dict(state)
    try:
        check_finite(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    digests.refuse_changed(path)  # last: the errors above say more

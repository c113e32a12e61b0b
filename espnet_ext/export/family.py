"""One exported folder for the members of a family.

    weights.bin          the weights of all members, each once (see ``graphs.weight_file``)
    NAME.GRAPH.onnx      the graphs of a member; equal ones are written once, as GRAPH.onnx
    NAME.tokens.txt      likewise
    NAME.weights.json    how a member's other weights follow from those in weights.bin
    model.json           ``members``: of each its files, the bytes of a folder with it alone, and
                         the SHA-256 of its other weights

transcribe.py and ``espnet-ext`` compute these when they load a member. For other runtimes
``transcribe.py --assemble NAME`` writes them once, as NAME.weights.bin.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.errors import UserError, nearest
from espnet_ext.export.folder import (
    SCRIPT,
    TOKENS,
    Exported,
    copy_module,
    export,
    refuse_other_folder,
)
from espnet_ext.export.graphs.weight_file import WeightFile
from espnet_ext.export.runtime import family_weights, run_onnx, run_search
from espnet_ext.export.runtime.decoder import SETTINGS
from espnet_ext.files import atomic_path, bytes_in, read_json, write_json
from espnet_ext.formats.digests import digests


@dataclass(frozen=True)
class ExportedFamily:
    """Bytes of an exported family, and its members as if each had a separate folder."""

    bytes: int
    members: Mapping[str, Exported]


def export_family(
    bundles: Mapping[str, Bundle], folder: Path, waves: Sequence[np.ndarray], **options: Any
) -> ExportedFamily:
    """Write members of a family into one folder.

    It appears only if each member is verified as ``folder.export`` does, and finds on ``waves``
    the tokens, with the scores to the last bit, that it finds from a separate folder.

    Args:
        bundles: members by name, the best first.
        folder: see ``folder.export``.
        waves: see ``folder.export``.
        options: the others of ``folder.export``.

    Raises:
        UserError: as ``folder.export``; or fewer than two members.
    """
    if len(bundles) < 2:
        raise UserError("a family has several members; leave out --family")
    refuse_other_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        alone = {name: Path(scratch) / name for name in bundles}
        made = {name: export(b, alone[name], waves, **options) for name, b in bundles.items()}
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            _join(alone, temporary)
            for name, single in alone.items():
                _compare(run_onnx.Model(single), run_onnx.Model(temporary, member=name), waves)
            size = bytes_in(temporary)
    return ExportedFamily(size, made)


def chosen_members(found: Iterable[Bundle], names: Sequence[str], path: Path) -> dict[str, Bundle]:
    """Deployed models by the names of their variants.

    Args:
        found: the best first.
        names: that are wanted; empty: all.
        path: of the family, for the error.

    Raises:
        UserError: there is no such variant.
    """
    members: dict[str, Bundle] = {}
    known = []
    for bundle in found:
        known.append(bundle.member or bundle.path.parent.name)
        if not names or known[-1] in names:
            members[known[-1]] = bundle
    for name in names:
        if name not in members:
            raise UserError(f"{path}: no member {nearest(name, known)}")
    return members


def _join(folders: Mapping[str, Path], target: Path) -> None:
    """Write one folder for several exported ones."""
    settings = {name: read_json(f / SETTINGS) for name, f in folders.items()}
    sizes = {name: bytes_in(f) for name, f in folders.items()}
    weights = WeightFile(target / family_weights.WEIGHTS)
    recipes: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    places: dict[str, dict[str, str]] = {name: {} for name in folders}
    # Weights of fewer bits are computed from those of more, narrow ones from wide ones.
    for name in sorted(folders, key=lambda name: (-_bits(settings[name]), -sizes[name])):
        graphs = run_onnx.GRAPHS[settings[name]["kind"]]
        for file in (TOKENS, *(f"{graph}.onnx" for graph in graphs)):
            alike = len({one["sha256"][file] for one in settings.values()}) == 1
            copy = target / (file if alike else f"{name}.{file}")
            places[name][file] = copy.name
            if not copy.exists():
                shutil.copyfile(folders[name] / file, copy)
            if file != TOKENS and not alike:
                weights.take(copy, f"{name}{family_weights.COMPUTED}", recipes[name])
    weights.close()
    computed: dict[str, str] = {}
    for name, listed in recipes.items():
        write_json(target / f"{name}{family_weights.RECIPES}", listed)
        computed[name] = hashlib.sha256(family_weights.assembled(target, name)).hexdigest()
    first = next(iter(folders))
    shutil.copyfile(folders[first] / SCRIPT, target / SCRIPT)
    copy_module(family_weights, target)
    if settings[first]["kind"] in run_onnx.ATTENTION:
        copy_module(run_search, target)
    known = {key for one in settings.values() for key in one} - {"sha256"}
    common = {
        key: settings[first].get(key)
        for key in sorted(known)
        if all(one.get(key) == settings[first].get(key) for one in settings.values())
    }
    members = {
        name: {
            "bytes": sizes[name],
            "files": places[name],
            "computed": computed[name],
            **{key: one[key] for key in sorted(known - common.keys()) if key in one},
        }
        for name, one in settings.items()
    }
    write_json(target / SETTINGS, {**common, "members": members, "sha256": digests(target)})


def _bits(settings: Mapping[str, Any]) -> int:
    """The most bits of a member's rounded weights; 32 if none is rounded."""
    return max(map(int, settings["weights_in_bits"]), default=32)


def _compare(alone: run_onnx.Model, found: run_onnx.Model, waves: Sequence[np.ndarray]) -> None:
    """Raise RuntimeError if a member changed by sharing its weights."""
    for wave in waves:
        if alone.tokens(wave) != found.tokens(wave):
            raise RuntimeError("a member of the family changed by sharing its weights")

"""Deployed models as they lie on disk: a folder, a file of weights in it, or a family file."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from espnet_ext.bridge.checkpoint import read_weights
from espnet_ext.bridge.deployed.speech_input import SpeechInput
from espnet_ext.config.training import UNTRAINED
from espnet_ext.data.ssl_model import SSLModel, read_ssl
from espnet_ext.errors import UserError, nearest
from espnet_ext.experiment import Experiment
from espnet_ext.files import DEPLOYED, PACKED, read_json, weights_file
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.digests import read_located
from espnet_ext.formats.family import FamilyFile, ranked
from espnet_ext.formats.packed import State, dequantised, read_member
from espnet_ext.formats.portable import located
from espnet_ext.run_files import SCORES

KEY = "espnet_ext"  # in a deployed config: what ESPnet's keys do not say
CONFIG = "config.yaml"
FEATURES = "features"  # folder of the pretrained model whose layers are the input
_HINT = "give a folder that espnet-ext deploy wrote, a file of weights in it, or a family file"


@dataclass(frozen=True)
class Bundle:
    """A deployed model that was read.

    Attributes:
        path: of its weights.
        arguments: ESPnet's config, in which files have whole paths.
        state: its tensors, dequantised.
        source: its input.
        methods: decoding methods and their options; the first is the default.
        member: of a family file.
    """

    path: Path
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    source: SpeechInput
    methods: Mapping[str, dict[str, Any]]
    member: str = ""

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Read a folder that stage 5 wrote.

        Raises:
            UserError: it is none, or was changed.
        """
        config = folder / CONFIG
        if not config.is_file():
            raise UserError(f"no {config}: {_HINT}")
        weights = weights_file(folder)
        arguments = read_located(config)
        return cls(weights, arguments, read_weights(weights), *_about(arguments))

    @classmethod
    def of_family(cls, path: Path, max_bytes: int | None = None) -> Iterator[Self]:
        """Read the members of a family with at most ``max_bytes`` as separate files, best first.

        Raises:
            UserError: no family file, a changed one, or no member is so small.
        """
        read = FamilyFile(path)
        for entry in ranked(read.entries, max_bytes=max_bytes):
            arguments = located(entry.config, path.parent)
            state = dequantised(read.state(entry))
            yield cls(path, arguments, state, *_about(arguments), entry.member.name)

    def stored(self) -> State:
        """Its tensors as files hold them, if there are integers among them; else none."""
        if self.member:
            read = FamilyFile(self.path)
            found = read.state(next(e for e in read.entries if e.member.name == self.member))
            return found if any(isinstance(v, Quantised) for v in found.values()) else {}
        return read_member(self.path) if self.path.name == PACKED else {}

    def features(self) -> SSLModel:
        """The pretrained model whose layers are the input.

        Raises:
            UserError: it is not in the folder.
        """
        folder = self.path.parent / FEATURES
        if not folder.is_dir():
            raise UserError(
                f"no {folder}, the model of the features: run stage 5 again (espnet-ext deploy)"
            )
        return read_ssl(folder, self.source.layers)

    def method(self, name: str | None = None) -> tuple[str, dict[str, Any]]:
        """Name and options of a decoding method, by default the first.

        Raises:
            UserError: the model has no such method.
        """
        chosen = name or next(iter(self.methods), "")
        if chosen not in self.methods:
            raise UserError(f"{self.path}: no decoding method {nearest(chosen, self.methods)}")
        return chosen, self.methods[chosen]


def about(experiment: Experiment, source: SpeechInput) -> dict[str, Any]:
    """The entry of a deployed config under ``KEY``."""
    features = experiment.espnet.get("frontend") if source.from_arks else None
    given = dataclasses.asdict(source) | {"layers": list(source.layers)}
    decode = {name: options or {} for name, options in experiment.recipe.decode.items()}
    return {"input": given, "features": features, "decode": decode}


def open_bundle(path: str | Path, max_bytes: int | None = None) -> Bundle:
    """Read the best deployed model; arguments and errors are those of ``bundles``."""
    return next(bundles(path, max_bytes))


def bundles(path: str | Path, max_bytes: int | None = None) -> Iterator[Bundle]:
    """Read deployed models, the best first.

    Args:
        path: a folder that stage 5 wrote, a file of weights in it, a family file, or the folder
            with several of these (exp/<tag>/deploy). There the best is the one that scored best
            (``scores.json``, which stage 8 writes), without scores the largest.
        max_bytes: of the file of weights; None: any.

    Raises:
        UserError: there is none, none is so small, or it was changed.
    """
    path = Path(path)
    if path.is_file() and not (path.parent / CONFIG).is_file():
        yield from Bundle.of_family(path, max_bytes)
        return
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise UserError(f"no {path}: {_HINT}")
    family = folder / "family.safetensors"
    if family.is_file():
        yield from Bundle.of_family(family, max_bytes)
        return
    if not (folder / CONFIG).is_file():
        inner = sorted(found.parent for found in folder.glob(f"*/{DEPLOYED}"))
        for chosen in _ranked(folder, inner, max_bytes):
            yield Bundle.of_folder(chosen)
        return
    if max_bytes is not None and weights_file(folder).stat().st_size > max_bytes:
        raise UserError(f"{weights_file(folder)} has more than {max_bytes:,} bytes")
    yield Bundle.of_folder(folder)


def _ranked(folder: Path, inner: Sequence[Path], max_bytes: int | None) -> list[Path]:
    """The folders of the variants that fit, the best first; an untrained model is none."""
    sizes = {f: weights_file(f).stat().st_size for f in inner if f.name != UNTRAINED}
    fitting = {f: size for f, size in sizes.items() if max_bytes is None or size <= max_bytes}
    if not sizes:
        raise UserError(f"no deployed model in {folder}: {_HINT}")
    if not fitting:
        least = min(sizes.values())
        raise UserError(f"{folder}: no model of {max_bytes:,} bytes; the smallest has {least:,}")
    scored = {f: _score(f) for f in fitting}
    measured = {found[0] for found in scored.values()}
    if len(measured) == 1 and None not in measured:
        return sorted(fitting, key=lambda f: (-scored[f][1], fitting[f]))
    return sorted(fitting, key=lambda f: (-fitting[f], f.name))


def _score(folder: Path) -> tuple[tuple[str, ...] | None, float]:
    """What was measured first of a variant, None if nothing was, and its score; more is better."""
    try:
        first = read_json(folder / SCORES)[0]
        measured = tuple(str(first[key]) for key in ("set", "method", "metric"))
        return measured, float(first["direction"]) * float(first["value"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None, 0.0


def _about(arguments: Mapping[str, Any]) -> tuple[SpeechInput, dict[str, dict[str, Any]]]:
    """The input and the decoding methods that a deployed config names."""
    known = arguments.get(KEY) or {}
    given = dict(known.get("input") or {"rate": 16000})
    given["layers"] = tuple(given.get("layers") or ())
    # Of arks only in the stages of a recipe, or of an older folder without the features' model.
    given["from_arks"] = known.get("features") == "ssl" and not given["layers"]
    return SpeechInput(**given), dict(known.get("decode") or {})

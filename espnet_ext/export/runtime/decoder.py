"""An exported folder as a decoder of segments; it needs neither torch nor ESPnet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.data.audio import filled_up
from espnet_ext.errors import UserError, nearest, one_line
from espnet_ext.export.runtime.family_weights import COMPUTED
from espnet_ext.files import bytes_in, read_json
from espnet_ext.formats.digests import refuse_other
from espnet_ext.recogniser import Found, Recogniser, mean_probability

SETTINGS = "model.json"
_KINDS = ("whisper", "whisper_offset", "attention", "ctc", "class", "transducer")
_LONGEST = 30  # seconds of a segment; Whisper has no positions for more
_AGAIN = "export it again"


class OnnxDecoder:
    """The graphs of a folder that ``espnet-ext export`` wrote; of a family, those of a member.

    Args:
        folder: that was written.
        threads: of the sessions.
        member: of a family; None: the best.
        max_bytes: of a family: the best member that, exported alone, has so many at most.
        beam: of an attention decoder: texts that are extended at each step; None: 1, greedy.

    Raises:
        UserError: no such folder or member, a folder of another kind, a file that was changed,
            graphs that this version of ONNX Runtime does not run, or a beam of another decoder.
    """

    batch_size = 1

    def __init__(
        self,
        folder: Path,
        threads: int = 1,
        member: str | None = None,
        max_bytes: int | None = None,
        beam: int | None = None,
    ):
        try:
            from espnet_ext.export.runtime.run_onnx import ATTENTION, Model
        except ImportError as error:
            raise UserError(f"no package {error.name}: pip install 'espnet-ext[export]'") from None
        members = require_unchanged(folder).get("members", {})
        if member is not None or max_bytes is not None:
            member = _chosen(folder, members, member, max_bytes)
        try:
            self.model = Model(folder, threads, member, beam or 1)
        except Exception as error:  # of a type of ONNX Runtime
            raise UserError(f"{folder}: ONNX Runtime cannot run it: {one_line(error)}") from None
        if beam is not None and self.model.settings["kind"] not in ATTENTION:
            raise UserError(f"{folder}: a beam is for attention; its decoder is another one")
        self.rate = int(self.model.settings["rate"])
        self.classifies = self.model.settings["kind"] == "class"
        self.longest = None if self.classifies else _LONGEST * self.rate

    def decode_waves(self, waves: Sequence[np.ndarray]) -> list[Found]:
        """Search each segment (samples,).

        Raises:
            UserError: a classifier of short clips gets a longer one.
        """
        most = self.model.settings.get("most_seconds")
        if self.classifies and most and any(len(wave) > most * self.rate for wave in waves):
            raise UserError(f"this classifier hears at most {most} s: cut the recording")
        return [self._one(wave) for wave in waves]

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self.model.text(tokens)

    def names_of(self, tokens: Sequence[int]) -> list[str]:
        """Lines of tokens.txt."""
        return [self.model.symbols[token] for token in tokens]

    def _one(self, wave: np.ndarray) -> Found:
        tokens, score, places = self.model.tokens(filled_up(wave, self.rate))
        confidence = mean_probability(score, len(tokens))
        return Found(self.model.text(tokens), confidence, tokens, places)


def require_unchanged(folder: Path) -> Mapping[str, Any]:
    """Compare the files of an exported folder with the digests in it; return its settings.

    Raises:
        UserError: no such folder, one of another kind, or a file that was changed.
    """
    path = folder / SETTINGS
    try:
        settings = read_json(path)
        kind, digests = settings["kind"], dict(settings["sha256"])
        members = _members(settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the settings of an exported model; {_AGAIN}") from None
    if kind not in _KINDS:
        raise UserError(f"{path}: unknown kind of model {kind!r}; {_AGAIN} with this version")
    for name, wanted in digests.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise UserError(f"no {file}; {_AGAIN}")
        refuse_other(file, wanted, SETTINGS, _AGAIN)
    for name, computed in members.items():
        assembled = folder / f"{name}{COMPUTED}"
        if assembled.is_file():
            refuse_other(assembled, computed, SETTINGS, _AGAIN)
    return settings


def _members(settings: Mapping[str, Any]) -> dict[str, str]:
    """Members of a family, with the digest of their computed weights.

    Raises:
        ValueError, KeyError, TypeError: what a family's settings never have: other entries, names
            that lead out of the folder, files without a digest.
    """
    members = dict(settings.get("members", {}))
    for name, one in members.items():
        if Path(name).name != name or not set(one["files"].values()) <= set(settings["sha256"]):
            raise ValueError("not a family's")
        int(one["bytes"])
    return {name: str(one["computed"]) for name, one in members.items()}


def _chosen(
    folder: Path, members: Mapping[str, Any], member: str | None, max_bytes: int | None
) -> str | None:
    """The member of a family that is named, or the best that fits; the best are listed first.

    None: the folder has one model, which fits.
    """
    if not members and member is not None:
        raise UserError(f"{folder} has one model: leave out the name")
    if not members:
        size = bytes_in(folder)
        if size > (max_bytes or 0):
            raise UserError(f"{folder} has {size:,} bytes, more than {max_bytes:,}")
        return None
    if member is not None and max_bytes is not None:
        raise UserError("choose the member by --variant or by --max-bytes, not by both")
    if member is not None:
        if member not in members:
            raise UserError(f"{folder}: no member {nearest(member, members)}")
        return member
    sizes = {name: one["bytes"] for name, one in members.items()}
    found = next((name for name, size in sizes.items() if size <= (max_bytes or 0)), None)
    if found is None:
        least = min(sizes.values())
        raise UserError(f"{folder}: no member of {max_bytes:,} bytes; the smallest has {least:,}")
    return found


def refuse_options(
    folder: Path, device: str, method: str | None, max_rtf: float | None = None
) -> None:
    """Raise UserError for what only deployed models can be given."""
    if method or max_rtf is not None or device != "cpu":
        raise UserError(f"{folder}: method, max_rtf and device are of deployed models")


def load_exported(folder: Path, *chosen: Any, **options: Any) -> Recogniser:
    """Load an exported folder; arguments and errors are those of ``OnnxDecoder``."""
    return Recogniser(OnnxDecoder(folder, *chosen, **options))

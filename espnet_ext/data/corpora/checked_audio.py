"""Audio that parts of stage 1 have checked, on several machines, for the call that joins them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ext.data import kaldi_dir
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.data.parts import Part
from espnet_ext.files import Stamp, read_json, write_json

_AT_ONCE = 2000  # files that are checked between two notes


def check_part(out: Path, part: Part, utterances: Sequence[Utterance], jobs: int) -> None:
    """Check the audio of a part's utterances, unless that was done, and keep what was found.

    Raises:
        UserError: what ``kaldi_dir.digest_audio`` raises.
    """
    known = checked_audio(out)
    found = {u.audio: known[u.audio] for u in utterances if u.audio in known}
    for start in range(0, len(utterances), _AT_ONCE):
        some = utterances[start : start + _AT_ONCE]
        digests = kaldi_dir.digest_audio("audio", some, jobs=jobs, known=known)
        found |= {u.audio: (d, u.seconds) for u, d in zip(some, digests, strict=True)}
        keep(out, part, found)


def keep(out: Path, part: Part, found: Mapping[str, tuple[str, float]]) -> None:
    """Write down the digest and the seconds of audio files."""
    path = _folder(out) / f"{part}.json"
    write_json(path, {audio: [*of, *_state(audio)] for audio, of in found.items()})
    _stamp(path).write([path])


def checked_audio(out: Path) -> dict[str, tuple[str, float]]:
    """SHA-256 of the samples, and seconds, of files that were checked and have not changed.

    What a part has written and was damaged since does not count: its audio is checked again.
    """
    return {
        audio: (digest, seconds)
        for path in sorted(_folder(out).glob("*_of_*.json"))
        if _stamp(path).is_current()
        for audio, (digest, seconds, *state) in read_json(path).items()
        if state == _state(audio)
    }


def forget(out: Path) -> None:
    """Remove what the parts have found: the data directories have it."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out / ".checked"


def _stamp(path: Path) -> Stamp:
    return Stamp(path.with_suffix(".done"), path.name, [])


def _state(audio: str) -> list[int]:
    """Size and time of change."""
    path = Path(audio)
    if not path.is_file():
        return []
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]

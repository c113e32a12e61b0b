"""Audio that parts of stage 1 have checked, on several machines, for the call that joins them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ext.data import kaldi_dir
from espnet_ext.data.kaldi_dir import Utterance
from espnet_ext.data.parts import Part
from espnet_ext.files import read_json, write_json


def check_part(out: Path, part: Part, utterances: Sequence[Utterance], jobs: int) -> None:
    """Check the audio of a part's utterances, unless that was done, and keep what was found.

    Raises:
        UserError: what ``kaldi_dir.digest_audio`` raises.
    """
    digests = kaldi_dir.digest_audio(out, utterances, jobs=jobs, known=checked_audio(out))
    rows = zip(utterances, digests, strict=True)
    found = {u.audio: [digest, u.seconds, *_state(u.audio)] for u, digest in rows}
    write_json(_folder(out) / f"{part}.json", found)


def checked_audio(out: Path) -> Mapping[str, tuple[str, float]]:
    """SHA-256 of the samples, and seconds, of files that were checked and have not changed."""
    return {
        audio: (digest, seconds)
        for path in sorted(_folder(out).glob("*_of_*.json"))
        for audio, (digest, seconds, *state) in read_json(path).items()
        if state == _state(audio)
    }


def forget(out: Path) -> None:
    """Remove what the parts have found: the data directories have it."""
    for path in _folder(out).glob("*_of_*.json"):
        path.unlink()
    if _folder(out).is_dir():
        _folder(out).rmdir()


def _folder(out: Path) -> Path:
    return out / ".checked"


def _state(audio: str) -> list[int]:
    """Size and time of change."""
    path = Path(audio)
    if not path.is_file():
        return []
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]

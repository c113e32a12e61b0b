"""Audio that parts of stage 1 have checked, on several machines, for the call that joins them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from espnet_ext.data.kaldi_dir import Checked, Utterance, digest_audio
from espnet_ext.data.parts import Part
from espnet_ext.files import Stamp, read_json, write_json

_AT_ONCE = 2000  # files of a note


def check_part(
    out: Path, part: Part, utterances: Sequence[Utterance], jobs: int, checked: Checked
) -> None:
    """Check the audio of a part's utterances, but for ``checked``, and note what was found.

    Raises:
        UserError: what ``kaldi_dir.digest_audio`` raises.
    """
    for start in range(0, len(utterances), _AT_ONCE):
        some = utterances[start : start + _AT_ONCE]
        digests = digest_audio(out, some, jobs=jobs, checked=checked)
        found = {u.audio: (digest, u.seconds) for u, digest in zip(some, digests, strict=True)}
        note(out, f"{part}.{start}", found)


def note(out: Path, name: str, found: Checked) -> None:
    """Write down the digest and the seconds of audio files."""
    path = _folder(out) / f"{name}.json"
    write_json(path, {audio: [*of, *_state(audio)] for audio, of in found.items()})
    _stamp(path).write([path])


def checked_audio(out: Path) -> dict[str, tuple[str, float]]:
    """What was noted of files that have not changed since.

    A note that was damaged does not count: its audio is checked again.
    """
    return {
        audio: (digest, seconds)
        for path in sorted(_folder(out).glob("*.json"))
        if _stamp(path).is_current()
        for audio, (digest, seconds, *state) in read_json(path).items()
        if state == _state(audio)
    }


def forget(out: Path) -> None:
    """Remove the notes: the data directories have what is in them."""
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

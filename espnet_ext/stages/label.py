"""A data set whose transcripts a model wrote, of speech that has none.

A small model learns the texts of a large one: sequence-level distillation (Kim and Rush, 2016,
arXiv 1606.07947), which made Distil-Whisper (arXiv 2311.00430). What the large model is unsure of
is left out.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet_ext.data.audio import seconds_of
from espnet_ext.data.corpora.clips import Clip, convert
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.corpora.splits import implausible
from espnet_ext.data.kaldi_dir import Utterance, read_data_dir
from espnet_ext.errors import UserError
from espnet_ext.files import quick_key, write_text

_AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph")


@dataclass(frozen=True)
class Stretch:
    """What a model found in a stretch of a recording; ``start`` and ``end`` are seconds."""

    start: float
    end: float
    text: str
    confidence: float | None


@dataclass(frozen=True)
class Labelling:
    """What to label.

    Attributes:
        files: recordings.
        out: the data directory to write.
        more: a data directory whose utterances come first; None: none.
        least: confidence from which a text is kept.
        jobs: processes that convert audio.
    """

    files: Sequence[Path]
    out: Path
    more: Path | None
    least: float
    jobs: int


def audio_files(paths: Iterable[str]) -> list[Path]:
    """Return files, and the audio files in folders, in the order of their names.

    Raises:
        UserError: one does not exist, or there is none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in _AUDIO)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no audio file or folder {path}")
    if not found:
        raise UserError(f"no audio file ({' '.join(_AUDIO)}) in {' '.join(paths)}")
    return found


def label(task: Labelling, recogniser: Any, model: str) -> None:
    """Write the data directory.

    Recordings that were done before, by a call that was killed or with another least confidence,
    are not recognised again: ``.<name>.jsonl`` beside the directory has what was found.

    Args:
        task: what to label.
        recogniser: an ``espnet_ext.recogniser.Recogniser``.
        model: a key of the model: what another one began is not continued.

    Raises:
        UserError: the model is a classifier, a recording that cannot be read, or no text is kept.
    """
    if recogniser.decoder.longest is None:
        raise UserError("a classifier writes no texts: give a recogniser")
    first = [] if task.more is None else read_data_dir(task.more)
    begun = task.out.with_name(f".{task.out.name}.jsonl")
    stretches = _recognised(task.files, recogniser, begun, model)
    clips, count = _kept(stretches, task.least)
    if not clips:
        raise UserError(f"no text has a confidence of {task.least} or more: try --least 0")
    made = convert(clips, task.out.parent / "audio" / task.out.name, task.jobs)
    _print_count(made, count)
    write_sets(task.out.parent, {task.out.name: [*first, *made]}, task.jobs)


def _recognised(
    files: Sequence[Path], recogniser: Any, begun: Path, model: str
) -> dict[Path, list[Stretch]]:
    """Recognise recordings; a line of ``begun`` is one that is done."""
    done = _read_begun(begun, model)
    begun.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"model": model}, *({"file": key, "segments": done[key]} for key in done)]
    write_text(begun, "".join(f"{json.dumps(row)}\n" for row in rows))
    found: dict[Path, list[Stretch]] = {}
    with begun.open("a", encoding="utf-8") as stream:
        lengths = [seconds_of(path, path.name) for path in files]
        with tqdm(total=round(sum(lengths)), unit="s", desc="label", mininterval=1.0) as bar:
            for number, path in enumerate(files, 1):
                key = f"{path} {quick_key(path)}"
                if key not in done:
                    heard = recogniser.file(path)
                    done[key] = [[s.start, s.end, s.text, s.confidence] for s in heard.segments]
                    stream.write(json.dumps({"file": key, "segments": done[key]}) + "\n")
                    stream.flush()
                found[path] = [Stretch(*row) for row in done[key]]
                bar.update(round(sum(lengths[:number])) - bar.n)
    return found


def _read_begun(begun: Path, model: str) -> dict[str, list[Any]]:
    """The segments of recordings that the same model has recognised before."""
    rows = []
    for line in begun.read_text(encoding="utf-8").splitlines() if begun.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that a kill has cut short
            break
    if not rows or rows[0] != {"model": model}:
        return {}
    return {row["file"]: row["segments"] for row in rows[1:]}


def _kept(stretches: dict[Path, list[Stretch]], least: float) -> tuple[list[Clip], Counter[str]]:
    """The clips whose texts are kept, and how many are not, by reason."""
    clips, count = [], Counter[str]()
    for path, found in stretches.items():
        name = "_".join(path.stem.split())
        for number, part in enumerate(found, 1):
            why = _refused(part, least)
            if why is not None:
                count[why] += 1
                continue
            cut = len(found) > 1
            key, end = (f"{name}-{number:04d}", part.end) if cut else (name, None)
            start = part.start if cut else 0.0
            clips.append(
                Clip(id=key, speaker=name, source=path, text=part.text, start=start, end=end)
            )
    return clips, count


def _refused(part: Stretch, least: float) -> str | None:
    """Why a text is not kept, or None."""
    if not part.text:
        return "without text"
    if part.confidence is None or part.confidence < least:
        return f"of a confidence below {least}"
    return implausible(part.text, part.end - part.start)


def _print_count(made: Sequence[Utterance], count: Counter[str]) -> None:
    minutes = sum(u.seconds for u in made) / 60
    left = ", ".join(f"{number} {why}" for why, number in sorted(count.items())) or "none"
    print(f"label: {len(made)} texts of {minutes:.1f} min; left out: {left}")

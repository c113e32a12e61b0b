"""A data set whose transcripts a model wrote, of speech that has none.

A small model learns the texts of a large one: sequence-level distillation (Kim and Rush, 2016,
arXiv 1606.07947), which made Distil-Whisper (arXiv 2311.00430). What the large model is unsure of
is left out.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet_ext.data.audio import seconds_of
from espnet_ext.data.corpora.clips import Clip, convert
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.corpora.splits import implausible
from espnet_ext.data.kaldi_dir import Utterance, check_id, read_data_dir
from espnet_ext.errors import UserError
from espnet_ext.files import quick_key, write_text
from espnet_ext.recogniser import Segment

_AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph")


@dataclass(frozen=True)
class Labelling:
    """Recordings to label, and where the set goes.

    Attributes:
        files: recordings, by the names that their utterances get.
        out: the data directory to write.
        more: a data directory whose utterances come first; None: none.
        least: confidence from which a text is kept.
        jobs: processes that convert audio.
    """

    files: Mapping[str, Path]
    out: Path
    more: Path | None
    least: float
    jobs: int

    @property
    def begun(self) -> Path:
        """File of the recordings that are done, a line each."""
        return self.out.with_name(f".{self.out.name}.jsonl")

    @property
    def audio(self) -> Path:
        """Folder of the utterances' audio."""
        return self.out.parent / "audio" / self.out.name


def audio_files(paths: Sequence[str]) -> dict[str, Path]:
    """Return files, and the audio files in folders, by the names that their utterances get.

    A name is that of the file, with the folders that it is in below the given one.

    Raises:
        UserError: one does not exist, two have one name, a name is no id, or there is no file.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no audio file or folder {path}")
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]
        root = path if path.is_dir() else path.parent
        for file in inner:
            parts = file.relative_to(root).with_suffix("").parts
            hidden = any(part.startswith(".") for part in parts)
            if path.is_dir() and (hidden or not _is_audio(file)):
                continue
            name = "-".join("_".join(part.split()) for part in parts)
            check_id(name, str(file))
            if name in found:
                raise UserError(f"{file} and {found[name]} would both be the utterance {name}")
            found[name] = file
    if not found:
        raise UserError(f"no audio file ({' '.join(_AUDIO)}) in {' '.join(paths)}")
    return found


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in _AUDIO and path.is_file()


def refuse_lost(task: Labelling, paths: Sequence[str]) -> None:
    """Raise UserError where writing the set would replace something that ``label`` did not write.

    ``paths``: what was given as audio.
    """
    out = task.out.resolve()
    if task.out.exists() and not task.begun.is_file():
        raise UserError(f"{task.out} exists, and label did not write it: choose another --out")
    if task.more is not None and task.more.resolve() == out:
        raise UserError(f"--more and --out are both {task.out}: choose another --out")
    for path in map(Path, paths):
        given = path.resolve()
        for place in (out, task.audio.resolve()):
            if path.is_dir() and (place.is_relative_to(given) or given.is_relative_to(place)):
                raise UserError(f"--out {task.out} would write into {path}: choose another --out")


def label(task: Labelling, recogniser: Any, model: str) -> None:
    """Write the data directory.

    Recordings that were done before, by a call that was killed or with another least confidence,
    are not recognised again: ``.<name>.jsonl`` next to the directory has what was found.

    Args:
        task: what to label.
        recogniser: an ``espnet_ext.recogniser.Recogniser``.
        model: a key of the model: what another one began is not continued.

    Raises:
        UserError: the model is a classifier, its search gives no confidence, a recording cannot be
            read, ``more`` has the same utterances or classes or translations, or no text is kept.
    """
    if recogniser.decoder.longest is None:
        raise UserError("a classifier writes no texts: give a recogniser")
    first = [] if task.more is None else _read_more(task.more, task.files)
    clips, count = _kept(task.files, _recognised(task, recogniser, model), task.least)
    left = ", ".join(f"{number} {why}" for why, number in sorted(count.items())) or "none"
    if not clips:
        raise UserError(f"no text is kept; left out: {left}")
    made = convert(clips, task.audio, task.jobs)
    minutes = sum(u.seconds for u in made) / 60
    print(f"label: {len(made)} texts of {minutes:.1f} min; left out: {left}")
    write_sets(task.out.parent, {task.out.name: [*first, *made]}, task.jobs)


def _read_more(folder: Path, files: Collection[str]) -> list[Utterance]:
    """The utterances of a set that texts are added to."""
    found = read_data_dir(folder)
    if found[0].label or found[0].translations:
        raise UserError(f"--more {folder}: has classes or translations, which no text here has")
    if same := sorted({u.id for u in found} & set(files)):
        raise UserError(f"--more {folder}: has an utterance {same[0]} too: rename the recording")
    return found


def _recognised(task: Labelling, recogniser: Any, model: str) -> dict[str, list[Segment]]:
    """Recognise recordings; a line of ``begun`` is one that is done."""
    begun = task.begun
    done = _read_begun(begun, model)
    begun.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"model": model}, *({"file": key, "segments": done[key]} for key in done)]
    write_text(begun, "".join(f"{json.dumps(row)}\n" for row in rows))
    found: dict[str, list[Segment]] = {}
    heard_seconds = 0.0
    with begun.open("a", encoding="utf-8") as stream:
        lengths = {name: seconds_of(path, path.name) for name, path in task.files.items()}
        total = round(sum(lengths.values()))
        with tqdm(total=total, unit="s", desc="label", mininterval=1.0) as bar:
            for name, path in task.files.items():
                key = f"{path} {quick_key(path)}"
                if key not in done:
                    heard = recogniser.file(path)
                    if any(s.text and s.confidence is None for s in heard.segments):
                        raise UserError("this search gives no confidence: choose another --method")
                    done[key] = [[s.start, s.end, s.text, s.confidence] for s in heard.segments]
                    stream.write(json.dumps({"file": key, "segments": done[key]}) + "\n")
                    stream.flush()
                found[name] = [Segment(a, b, text, sure, ()) for a, b, text, sure in done[key]]
                heard_seconds += lengths[name]
                bar.update(round(heard_seconds) - bar.n)
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


def _kept(
    files: Mapping[str, Path], segments: Mapping[str, Sequence[Segment]], least: float
) -> tuple[list[Clip], Counter[str]]:
    """The clips whose texts are kept, and how many are not, by reason."""
    clips, count = [], Counter[str]()
    for name, found in segments.items():
        for number, part in enumerate(found, 1):
            why = _refused(part, least)
            if why is not None:
                count[why] += 1
                continue
            cut = len(found) > 1
            key, end = (f"{name}-{number:04d}", part.end) if cut else (name, None)
            start = part.start if cut else 0.0
            clips.append(
                Clip(
                    id=key,
                    speaker=name,  # unknown: each recording counts as one
                    source=files[name],
                    text=part.text,
                    start=start,
                    end=end,
                )
            )
    return clips, count


def _refused(part: Segment, least: float) -> str | None:
    """Why a text is not kept, or None."""
    if not part.text:
        return "without text"
    if part.confidence is None or part.confidence < least:
        return f"of a confidence below {least}"
    # What the model heard at once may be trained at once.
    return implausible(part.text, part.end - part.start, most=math.inf)

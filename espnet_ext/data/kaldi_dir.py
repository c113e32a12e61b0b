"""Kaldi data directories: written as a whole, read and checked.

A directory holds ``wav.scp text utt2spk spk2utt utt2dur``. Translation adds ``text.<language>``;
classification has ``label`` instead of ``text``, or both. Each file is sorted by its first column
in C order (``LC_ALL=C sort``). A digest of the audio lets stamps notice other audio. Relative paths
in ``wav.scp`` start from the recipe's folder, where ESPnet runs. Nothing here imports torch.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.processes import map_processes
from espnet_ext.errors import LONGEST_NAME, UserError, is_file_name
from espnet_ext.files import atomic_path, read_utf8

WHOLE = "all"  # the set of a whole corpus, of which others are parts
AUDIO_DIGEST = "audio.sha256"  # of every utterance's samples, however they are encoded
RATE = 16000  # Hz, of all audio that stage 1 makes
_TOLERANCE = 0.01  # seconds between utt2dur and the audio

type Checked = Mapping[str, tuple[str, float]]  # audio file: SHA-256 of its samples, seconds


@dataclass(frozen=True, order=True)
class Utterance:
    """One utterance. All of a set have a text, a class or both, and the same languages."""

    id: str  # begins with the speaker, so that utterances sort by speaker
    speaker: str
    text: str  # transcript
    audio: str  # path
    seconds: float
    label: str = ""  # class
    translations: tuple[tuple[str, str], ...] = ()  # (language, text)

    def translation(self, language: str) -> str:
        """Return the translation into a language, empty if there is none."""
        return dict(self.translations).get(language, "")


def write_data_dir(path: str | Path, utterances: Iterable[Utterance]) -> list[Path]:
    """Write a data directory, sorted; an old one is replaced only when the new one is whole.

    Returns:
        Its files.

    Raises:
        UserError: no utterance, an id twice, an empty transcript or translation, a class of
            several words, or what ``check_id`` raises.
    """
    path = Path(path)
    ordered = sorted(utterances)
    _check_utterances(path, ordered)
    contents: dict[str, list[str]] = {
        "wav.scp": [f"{item.id} {item.audio}" for item in ordered],
        "utt2spk": [f"{item.id} {item.speaker}" for item in ordered],
        "utt2dur": [f"{item.id} {item.seconds:.4f}" for item in ordered],
    }
    members = defaultdict(list)
    for item in ordered:
        members[item.speaker].append(item.id)
    contents["spk2utt"] = [f"{name} {' '.join(members[name])}" for name in sorted(members)]
    if ordered[0].text:
        contents["text"] = [f"{item.id} {' '.join(item.text.split())}" for item in ordered]
    if ordered[0].label:
        contents["label"] = [f"{item.id} {item.label}" for item in ordered]
    for language, _ in ordered[0].translations:
        contents[f"text.{language}"] = [
            f"{item.id} {' '.join(item.translation(language).split())}" for item in ordered
        ]
    with atomic_path(path) as folder:
        folder.mkdir(parents=True)
        for name, lines in contents.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [path / name for name in contents]


def _check_utterances(path: Path, ordered: list[Utterance]) -> None:
    if not ordered:
        raise UserError(f"{path}: no utterance to write")
    classed = any(item.label for item in ordered)
    spoken = not classed or any(item.text for item in ordered)
    languages = sorted({language for item in ordered for language, _ in item.translations})
    for item in ordered:
        check_id(item.id, str(path))
        check_id(item.speaker, str(path))
    for before, item in zip([None, *ordered[:-1]], ordered, strict=True):
        if before is not None and before.id == item.id:
            raise UserError(f"{path}: utterance id {item.id} occurs twice")
        if classed and len(item.label.split()) != 1:
            raise UserError(f"{path}: {item.id} has the class '{item.label}', expected one word")
        if spoken and not item.text.strip():
            raise UserError(f"{path}: {item.id} has an empty transcript")
        for language in languages:
            if not item.translation(language).strip():
                raise UserError(f"{path}: {item.id} has no translation into {language}")


def check_id(name: str, where: str) -> None:
    """Check the id of an utterance or a speaker, which becomes a file's name.

    Raises:
        UserError: it is no ``is_file_name``.
    """
    if not is_file_name(name):
        raise UserError(
            f"{where}: {name[:LONGEST_NAME]!r} is no id: no blank, separator or control character "
            f"in it, no dot at its beginning, at most {LONGEST_NAME} bytes"
        )


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """Read a file of ``key value`` lines, in its order; a key alone has the value "".

    Raises:
        UserError: the file is missing, is not UTF-8, has an empty line, or a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; the stage that makes it has to run")
    content = read_utf8(path).replace("\ufeff", "")  # marks inside: of files joined by cat
    table: dict[str, str] = {}
    for number, line in enumerate(content.split("\n")[:-1], 1):
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        if not key:
            raise UserError(f"{path}: line {number} is empty; remove it")
        if key in table:
            raise UserError(f"{path}: {key} occurs twice (line {number})")
        table[key] = value.strip()
    if content and not content.endswith("\n"):
        raise UserError(f"{path}: cut short, its last line does not end")
    return table


def audio_rows(path: str | Path) -> list[tuple[str, str]]:
    """Return the (utterance, audio path) of the ``wav.scp`` of a data directory.

    Raises:
        UserError: there is none, or no utterance in it.
    """
    scp = Path(path) / "wav.scp"
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage 1")
    rows = list(read_table(scp).items())
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stage 1")
    return rows


def data_sets(data: Path) -> list[str]:
    """Return the names of the data directories under ``data``, that of the whole corpus first.

    A set of a fold lies one folder deeper: voice-british/train.
    """
    found = [path.parent.relative_to(data).as_posix() for path in data.rglob("wav.scp")]
    whole = [name for name in found if ".tmp-" not in name]  # no scratch folder
    return sorted(whole, key=lambda name: (name != WHOLE, name))


def read_data_dir(path: str | Path) -> list[Utterance]:
    """Read and check a data directory without opening its audio; utterances sorted by id.

    ``utt2dur`` may be absent; the duration is then ``nan``.

    Raises:
        UserError: a file is missing, unsorted, has an id twice, or disagrees with the others; a
            transcript is empty.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such data directory; run the recipe's data stage (--stage 1)")
    if (path / "segments").is_file():
        raise UserError(f"{path}: has segments; stage 2 cuts them, into dump/cut")
    tables = {name: read_table(path / name) for name in ("wav.scp", "utt2spk", "spk2utt")}
    for name in ("text", "label", "utt2dur"):
        # One of text and label is there, and it is text that a message asks for.
        needed = name == "text" and not (path / "label").exists()
        if needed or (path / name).exists():
            tables[name] = read_table(path / name)
    languages = [file.name.removeprefix("text.") for file in sorted(path.glob("text.*"))]
    for language in languages:
        tables[f"text.{language}"] = read_table(path / f"text.{language}")
    _check_tables(path, tables)
    durations = tables.get("utt2dur", {})
    result = []
    for key, audio in tables["wav.scp"].items():
        try:
            seconds = float(durations.get(key, "nan"))
        except ValueError:
            raise UserError(f"{path}/utt2dur: {key}: not a number: {durations[key]}") from None
        text, label = (tables.get(name, {}).get(key, "") for name in ("text", "label"))
        translations = tuple((name, tables[f"text.{name}"][key]) for name in languages)
        speaker = tables["utt2spk"][key]
        result.append(Utterance(key, speaker, text, audio, seconds, label, translations))
    return result


def _check_tables(path: Path, tables: Mapping[str, Mapping[str, str]]) -> None:
    known = tables["wav.scp"]
    if not known:
        raise UserError(f"{path}/wav.scp: no utterance in it")
    for name, table in tables.items():
        keys = list(table)
        for before, key in zip(keys, keys[1:], strict=False):
            # Kaldi and ESPnet read these files in parallel, in C order.
            if before.encode() > key.encode():
                raise UserError(f"{path}/{name}: not sorted, {key} comes after {before}")
        for key, value in table.items():
            if not value:
                raise UserError(f"{path}/{name}: {key} has an empty {_kind(name)}")
            if name != "spk2utt" and key not in known:
                raise UserError(f"{path}/{name}: {key} is not in wav.scp")
        for key in known:
            if name != "spk2utt" and key not in table:
                raise UserError(f"{path}/{name}: {key} is missing, it is in wav.scp")
    inverse: dict[str, list[str]] = defaultdict(list)
    for key, speaker in tables["utt2spk"].items():
        inverse[speaker].append(key)
    listed = {speaker: value.split() for speaker, value in tables["spk2utt"].items()}
    for speaker in sorted(inverse.keys() | listed.keys()):
        if sorted(inverse.get(speaker, [])) != sorted(listed.get(speaker, [])):
            raise UserError(f"{path}/spk2utt: speaker {speaker} does not agree with utt2spk")


def _kind(name: str) -> str:
    """Return what a value of a file is called."""
    return {"text": "transcript"}.get(name, "translation" if name.startswith("text.") else "value")


def validate_data_dir(path: str | Path, root: str | Path = ".", jobs: int = 1) -> list[Utterance]:
    """Check a data directory and its audio; return its utterances.

    Args:
        path: the directory.
        root: folder that relative paths in ``wav.scp`` start from.
        jobs: processes that decode.

    Raises:
        UserError: the first fault found; names the file and the utterance.
    """
    utterances = read_data_dir(path)
    digest_audio(path, utterances, root, jobs)
    return utterances


def digest_audio(
    path: str | Path,
    utterances: Iterable[Utterance],
    root: str | Path = ".",
    jobs: int = 1,
    checked: Checked | None = None,
) -> list[str]:
    """Decode and check the audio of a data directory; return the SHA-256 of each utterance.

    ``checked``: audio that need not be decoded. A length of another utterance's is checked anew.
    """
    known, rows = checked or {}, list(utterances)
    new = [
        u for u in rows if u.audio not in known or abs(known[u.audio][1] - u.seconds) > _TOLERANCE
    ]
    tasks = [(u, str(path), str(root)) for u in new]
    made = map_processes(_digest, tasks, jobs, chunk=64)
    found = {u.audio: digest for u, digest in zip(new, made, strict=True)}
    return [found[u.audio] if u.audio in found else known[u.audio][0] for u in rows]


def audio_inputs(path: str | Path) -> list[Path]:
    """Return the files other than wav.scp that change when the audio of a data directory does.

    A directory that ``write_sets`` did not make may have none of them.
    """
    return [file for name in ("utt2dur", AUDIO_DIGEST) if (file := Path(path, name)).is_file()]


def _digest(task: tuple[Utterance, str, str]) -> str:
    from espnet_ext.data.audio import read_samples

    item, directory, root = task
    where = f"{directory}/wav.scp: {item.id}"
    if item.audio.endswith("|"):
        raise UserError(f"{where}: commands are not run, write the audio to a file: {item.audio}")
    path = os.path.join(root, item.audio)
    if not os.path.exists(path):
        raise UserError(f"{where}: no audio file {path}")
    samples, rate = read_samples(Path(path), where)
    if rate != RATE:
        raise UserError(f"{where}: {path} has {rate} Hz, expected {RATE} Hz")
    if samples.shape[1] != 1:
        raise UserError(f"{where}: {path} has {samples.shape[1]} channels, expected 1")
    if len(samples) == 0:
        raise UserError(f"{where}: {path} is empty")
    seconds = len(samples) / rate
    if abs(seconds - item.seconds) > _TOLERANCE:
        raise UserError(
            f"{directory}/utt2dur: {item.id}: {item.seconds} s, but {path} has {seconds:.4f} s"
        )
    return hashlib.sha256(samples.tobytes()).hexdigest()


def check_no_text_overlap(train: str | Path, others: Iterable[str | Path]) -> None:
    """Raise UserError if a text of one of ``others``, or a translation, is also in ``train``."""
    seen = {key: item.id for item in read_data_dir(train) for key in _texts(item)}
    for other in others:
        for item in read_data_dir(other):
            for name, text in _texts(item):
                if (name, text) in seen:
                    owner = f"{seen[name, text]} in {train}"
                    raise UserError(f"{other}/{name}: {item.id} has the {_kind(name)} of {owner}")


def _texts(item: Utterance) -> Iterable[tuple[str, str]]:
    """Texts of an utterance by the name of their file."""
    named = [("text", item.text), *((f"text.{name}", text) for name, text in item.translations)]
    return [(name, text) for name, text in named if text]

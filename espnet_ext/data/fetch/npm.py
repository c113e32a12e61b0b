"""ONNX Runtime for browsers, from the npm registry: fetched, checked. MIT, (C) Microsoft."""

import shutil
import subprocess
import tarfile
from pathlib import Path

from espnet_ext.data.fetch.downloads import fetched
from espnet_ext.errors import UserError
from espnet_ext.files import sha256_file

_NAME, _VERSION = "onnxruntime-web", "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
FILE = f"{_NAME}-{_VERSION}.tgz"
_REMEDY = f"download {FILE} and pass it with --package FILE"
# The module and the program that it loads, by the names that pages of ours use.
MEMBERS = {
    "ort.js": "package/dist/ort.wasm.bundle.min.mjs",
    "ort.wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}


def fetch(folder: Path, given: Path | None = None) -> Path:
    """Return the path of the package: the given file, or that in ``folder``, fetched by npm.

    Raises:
        UserError: a file of another content, no npm, or no network.
    """
    if given is None:
        return fetched(folder / FILE, SHA256, _download, _check_sum)
    if not given.is_file() or sha256_file(given) != SHA256:
        raise UserError(f"{given} is not {FILE} of the npm registry; get it again")
    return given


def _download(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"no npm here to fetch {_NAME} {_VERSION} with; {_REMEDY}")
    words = [npm, "pack", f"{_NAME}@{_VERSION}", "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode or not (folder / FILE).is_file():
        raise UserError(f"npm cannot fetch {_NAME} {_VERSION}: is there a network? Or {_REMEDY}")
    return folder / FILE


def _check_sum(path: Path) -> None:
    if sha256_file(path) != SHA256:
        raise UserError(f"{FILE} as fetched has another SHA-256 than expected; {_REMEDY}")


def unpack(package: Path, folder: Path) -> None:
    """Write ``ort.js`` and ``ort.wasm`` of a package that ``fetch`` has checked."""
    with tarfile.open(package) as archive:
        for name, member in MEMBERS.items():
            content = archive.extractfile(member)
            assert content is not None  # of a package with this SHA-256
            with content, (folder / name).open("wb") as out:
                shutil.copyfileobj(content, out)

"""ONNX Runtime for browsers, from the npm registry: fetched, checked. MIT, (C) Microsoft."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.files import scratch_folder, sha256_file

_NAME, _VERSION = "onnxruntime-web", "1.30.0"
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
FILE = f"{_NAME}-{_VERSION}.tgz"
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
    path = folder / FILE if given is None else given
    if path.is_file() and sha256_file(path) == _SHA256:
        return path
    if given is not None:
        raise UserError(f"{given} is not {FILE} of the npm registry; get it again")
    remedy = f"download {FILE} and pass it with --package FILE"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"no npm here to fetch {_NAME} {_VERSION} with; {remedy}")
    with scratch_folder(path) as scratch:
        words = [npm, "pack", f"{_NAME}@{_VERSION}", "--silent", "--pack-destination"]
        done = subprocess.run(
            [*words, str(scratch)], capture_output=True, text=True, check=False, cwd=scratch
        )
        fetched = scratch / FILE
        if done.returncode or not fetched.is_file():
            raise UserError(f"npm cannot fetch {_NAME} {_VERSION}: is there a network? Or {remedy}")
        if sha256_file(fetched) != _SHA256:
            raise UserError(f"{FILE} as fetched has another SHA-256 than expected; {remedy}")
        os.replace(fetched, path)
    return path


def unpack(package: Path, folder: Path) -> None:
    """Write ``ort.js`` and ``ort.wasm`` of a package that ``fetch`` has checked."""
    with tarfile.open(package) as archive:
        for name, member in MEMBERS.items():
            content = archive.extractfile(member)
            assert content is not None  # of a package with this SHA-256
            with content, (folder / name).open("wb") as out:
                shutil.copyfileobj(content, out)

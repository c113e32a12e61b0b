"""Files that are either whole or absent, and stamps that tell whether work is up to date."""

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKED = "model.safetensors"  # weights of a form at 8, 4 or 2 bits (espnet_ext.formats.packed)
_ABANDONED = 24 * 3600.0  # seconds after which another machine's temporary counts as left over


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold a lock that others of this machine wait for; it ends with its process at the latest."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def weights_file(folder: str | os.PathLike) -> Path:
    """The weights of a deployed model: model.safetensors of a packed form, else model.pth.

    The file need not exist.
    """
    packed = Path(folder) / PACKED
    return packed if packed.is_file() else Path(folder) / "model.pth"


def sha256_file(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` only if the block succeeds.

    The temporary name keeps the suffix, since many writers choose their format by it.
    Works for a file and for a folder. No system call replaces a folder that is not empty, so
    the old one is renamed first: at any moment ``path`` is whole, old or new, or absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    aside = path.with_name(f".tmp{_writer()}.old.{path.name}")
    _remove_leftovers(path)
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        elif temporary.is_dir() and path.is_dir():
            os.rename(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            if aside.exists():
                os.rename(aside, path)
            raise
    finally:
        _remove(temporary)
        _remove(aside)


def temporary_name(path: Path) -> Path:
    """Name beside ``path`` for its temporary form; it tells who writes it, and on which machine."""
    return path.with_name(f".tmp{_writer()}.{path.name}")


def _writer() -> str:
    return f"{_machine()}-{os.getpid()}"


@functools.cache
def _machine() -> str:
    """Where process ids mean what they mean here: "host-boot", each as eight hex digits.

    Folders are shared between machines and containers; the host covers the namespace of
    process ids, the boot its start.
    """
    host, boot = socket.gethostname(), ""
    with contextlib.suppress(OSError):  # Linux only
        host += os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return "-".join(hashlib.sha256(word.encode()).hexdigest()[:8] for word in (host, boot))


def _remove_leftovers(path: Path) -> None:
    """Remove temporary forms of ``path`` whose writer was killed, or was this process."""
    for old in path.parent.glob(f".tmp*.{glob.escape(path.name)}"):
        writer = old.name[len(".tmp") : -len(path.name) - 1].removesuffix(".old")
        if _is_dead(writer, old):
            _remove(old)


def _is_dead(writer: str, left: Path) -> bool:
    """Say whether a writer ("host-boot-process") has ended; judge those elsewhere by age."""
    machine, _, process = writer.rpartition("-")
    if machine == _machine() and process.isdecimal():
        return int(process) == os.getpid() or not _runs(int(process))
    if machine.split("-")[0] == _machine().split("-")[0]:
        return True  # this machine was started again since
    with contextlib.suppress(FileNotFoundError):
        return time.time() - left.stat().st_mtime > _ABANDONED
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


class Stamp:
    """Says whether a stage's outputs were made, whole, from the inputs it has now.

    The stamp is written last. It holds a digest of ``settings`` and of the input files
    (by content up to 16 MiB, by size and time beyond), and the sizes of the outputs.
    """

    def __init__(self, path: str | os.PathLike, settings: Any, inputs: Iterable[str | os.PathLike]):
        self.path = Path(path)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name in inputs:
            digest.update(f"{name}:{content_key(Path(name))}".encode())
        self.digest = digest.hexdigest()

    def is_current(self) -> bool:
        """True if the stamp was written for the same inputs and no output changed since."""
        try:
            stored = read_json(self.path)
        except (OSError, ValueError):
            return False
        return stored["digest"] == self.digest and all(
            os.path.exists(name) and os.path.getsize(name) == size
            for name, size in stored["outputs"].items()
        )

    def write(self, outputs: Iterable[str | os.PathLike]) -> None:
        """Record that ``outputs`` (files) are whole and belong to the inputs."""
        sizes = {str(name): os.path.getsize(name) for name in outputs}
        write_json(self.path, {"digest": self.digest, "outputs": sizes})


def content_key(path: Path) -> str:
    """Return what changes when the file does: SHA-256 up to 16 MiB, size and time beyond."""
    if not path.exists():
        return "absent"
    status = path.stat()
    if status.st_size <= 16 << 20:
        return sha256_file(path)
    return f"{status.st_size}:{status.st_mtime_ns}"

"""Files that are either whole or absent, and stamps that show whether work is up to date."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError

HOLDS = "ESPNET_EXT_HOLDS"  # environment: the experiment's folder that a calling run.sh holds
_SCRATCH, _LOCK = ".tmp-", ".lock"  # how scratch folders begin; file in each of them
_held: set[int] = set()  # locks of this process, on folders
DONE = ".done.json"  # the stamp in a folder that one stage writes
DEPLOYED = "deploy.json"  # what stage 5 found out about a model, in its folder
DECODED = "decode.json"  # what stage 6 measured, next to the texts
PACKED = "model.safetensors"  # weights at fewer than 32 bits (espnet_ext.formats.packed)


@contextlib.contextmanager
def lock(path: str | os.PathLike, shared: bool = False) -> Iterator[None]:
    """Wait for a lock and hold it; it ends with the process at the latest.

    ``shared``: with others that share it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: another process holds it; waiting", file=sys.stderr)
            fcntl.flock(stream, kind)
        yield


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold an experiment's folder against other runs, unless the run.sh that calls us holds it.

    Raises:
        UserError: another process runs there.
    """
    if os.environ.get(HOLDS) == str(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock_file = os.open(folder, os.O_RDONLY)  # the folder itself: no file is left
    _held.add(lock_file)
    try:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process runs in {folder}; wait for it or end it") from None
        yield
    finally:
        _held.discard(lock_file)
        os.close(lock_file)


def bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder, without those of folders in it."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def weights_file(folder: str | os.PathLike) -> Path:
    """The weights of a deployed model: model.safetensors of a packed variant, else model.pth.

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
    """Yield a temporary path; rename it to ``path`` only if the block succeeds.

    It works for a file and for a folder. The temporary path has the same name, since many writers
    choose their format by the suffix. At any moment ``path`` is whole (old or new) or absent.
    """
    path = Path(path)
    with scratch_folder(path) as scratch:
        temporary, old = scratch / path.name, scratch / f"{path.name}.old"
        try:
            yield temporary
        except OSError as error:  # of a full disk: it names none
            error.filename = error.filename or str(path)
            raise
        if temporary.is_file():
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        elif temporary.is_dir() and path.is_dir():
            os.rename(path, old)  # no system call replaces a folder that is not empty
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise


@contextlib.contextmanager
def scratch_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder next to ``path`` for work on it; remove the folder at the end.

    Its writer locks a file in it; the lock ends with the process at the latest. Scratch folders
    nearby that nobody locks, left by killed writers, are removed first. On a shared disk, writers
    on other machines are safe as far as its ``flock`` reaches.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    folder, lock_file = _new_scratch(path)
    _held.add(lock_file)
    try:
        yield folder
    finally:
        _held.discard(lock_file)
        _remove(folder, lock_file)


def _close_locks() -> None:
    """In a forked process: its copies would hold the locks of a parent that was killed."""
    for lock_file in _held:
        os.close(lock_file)
    _held.clear()


os.register_at_fork(after_in_child=_close_locks)


def _remove_leftovers(folder: Path) -> None:
    """Remove the scratch folders in a folder that nobody locks."""
    for left in folder.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            lock_file = _try_lock(left / _LOCK)
            if lock_file is not None:
                _remove(left, lock_file)


def _new_scratch(path: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(f".{path.name}", _SCRATCH, path.parent))
        # Until it is locked, another writer may remove it.
        with contextlib.suppress(FileNotFoundError):
            lock_file = _try_lock(folder / _LOCK)
            if lock_file is not None and (folder / _LOCK).exists():
                return folder, lock_file


def _try_lock(path: Path) -> int | None:
    """Open and lock a file; None if another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path, lock_file: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock_file)
    with contextlib.suppress(OSError):
        folder.rmdir()  # NFS keeps a file in it until the lock is closed


def read_utf8(path: Path) -> str:
    """Read a text file that somebody else wrote, with a byte-order mark or without.

    Raises:
        UserError: there is none, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Stamp:
    """Says whether a stage's outputs were made, whole, from the inputs it has now.

    The stamp is written last. It holds a digest of ``settings`` and of the content of the input
    files, and the SHA-256 of each output, or its size.
    """

    def __init__(self, path: str | os.PathLike, settings: Any, inputs: Iterable[str | os.PathLike]):
        self.path = Path(path)
        self.inputs = [str(name) for name in inputs]
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.digest = self._digest(content_key)

    def _digest(self, key: Callable[[Path], str]) -> str:
        digest = hashlib.sha256(self.settings.encode())
        for name in self.inputs:
            digest.update(f"{name}:{key(Path(name))}".encode())
        return digest.hexdigest()

    def is_current(self) -> bool:
        """True if the stamp was written for the same inputs and no output changed since."""
        _remove_leftovers(self.path.parent)  # of writers killed after their last step
        try:
            stored = read_json(self.path)
            # The older digest is computed only where it may be the one.
            same = stored["digest"] == self.digest or stored["digest"] == self._digest(quick_key)
            return same and all(_is_as(Path(n), known) for n, known in stored["outputs"].items())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False  # none, or damaged: the stage runs again

    def write(
        self, outputs: Iterable[str | os.PathLike], by_size: Iterable[str | os.PathLike] = ()
    ) -> None:
        """Record that ``outputs`` (files) are whole and belong to the inputs.

        Of ``by_size`` only the size is recorded: files with check sums in or next to them, which
        are compared when they are read.

        Raises:
            FileNotFoundError: one is missing.
        """
        sizes = {str(name): os.path.getsize(name) for name in by_size}
        listed = [str(name) for name in outputs]
        for name in listed:
            os.stat(name)
        found = {**{name: content_key(Path(name)) for name in listed}, **sizes}
        write_json(self.path, {"digest": self.digest, "inputs": self.inputs, "outputs": found})


def score_stamp(score: Path) -> Path:
    """The stamp of a score file <set>.json."""
    return score.with_name(f".{score.stem}.stamp")


def refuse_changed_output(output: Path, stamp: Path, remedy: str) -> None:
    """Compare an output of a stage with what the stage recorded in its stamp.

    Without a stamp that names it nothing is promised.

    Raises:
        UserError: its content is another one; it says the remedy.
    """
    try:
        known = read_json(stamp)["outputs"][str(output)]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if output.exists() and not _is_as(output, known):
        raise changed(output, stamp, remedy)


def changed(path: Path, record: str | os.PathLike, remedy: str) -> UserError:
    """The error for a file whose content is not that of a record."""
    return UserError(f"{path} was changed: its SHA-256 is not that in {record}; {remedy}")


def _is_as(path: Path, known: str | int) -> bool:
    """True if a file has a SHA-256, or a size."""
    if isinstance(known, int):
        return path.exists() and path.stat().st_size == known
    return content_key(path) == known


def content_key(path: Path) -> str:
    """Return what changes when the file does: its SHA-256, computed once a process."""
    if not path.exists():
        return "absent"
    status = path.stat()
    return _hashed(path, status.st_size, status.st_mtime_ns, status.st_ino)


def quick_key(path: Path) -> str:
    """Return SHA-256 up to 16 MiB, size and time beyond: for recordings, and as older stamps."""
    if path.exists() and path.stat().st_size > 16 << 20:
        return f"{path.stat().st_size}:{path.stat().st_mtime_ns}"
    return content_key(path)


@functools.lru_cache(maxsize=4096)
def _hashed(path: Path, *_: int) -> str:
    return sha256_file(path)

"""Debian packages without root: fetched, checked, and single files extracted from them.

A package comes from the system's ``apt-get``, or is a file that the user has. It is pinned by
SHA-256. Where the system's package lists are empty or too old, they are fetched into a scratch
folder; the system is never changed.
"""

import contextlib
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from debian.arfile import ArError, ArFile

from espnet_ext.data.fetch.downloads import fetched
from espnet_ext.errors import UserError
from espnet_ext.files import atomic_path, scratch_folder, sha256_file

_BLOCK = 1 << 20
# What a package may expand to: audio and text of the corpora here, by at most 8.
_EXPANDS = 40
_ALWAYS = 256 << 20  # bytes that any package may hold
_MOST_ENTRIES = 1_000_000
# What apt-get says where there is no network, and where a source answers but is of no use.
_NO_NETWORK = (
    *("Could not resolve", "Could not connect", "Cannot initiate the connection"),
    *("Temporary failure", "timed out", "unreachable"),
)
_BROKEN = (
    *("403 ", "404 ", "does not have a Release file", "is expired", "is not valid yet"),
    *("is not signed", "NO_PUBKEY", "Failed to fetch"),
)
# What damaged archives raise; bz2 an OSError without a number.
_DAMAGED: tuple[type[Exception], ...] = (
    *(ArError, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error),
    *(EOFError, OSError, ValueError, OverflowError),
)


@dataclass(frozen=True)
class Package:
    """A Debian package, pinned: name, version and SHA-256 of its ``.deb``."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file that ``apt-get download`` writes, for all architectures."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


def fetch(package: Package, folder: str | Path, given: str | Path | None = None) -> Path:
    """Return the path of the package's ``.deb``, checked; download it into ``folder`` if need be.

    Args:
        package: what is wanted.
        folder: where a download is kept; nothing is written there if ``given`` is.
        given: a file that the user has; it is checked and used where it is.

    Raises:
        UserError: the file is missing or another one, there is no apt-get, no network, or the
            version is not offered.
    """
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UserError(f"--package {path}: no such file")
        check_sum(path, package)
        return path
    return fetched(
        Path(folder) / package.file_name,
        package.sha256,
        lambda scratch: _download(package, scratch),  # absolute: apt reads others from /
        lambda found: check_sum(found, package),
    )


def check_sum(path: str | Path, package: Package) -> None:
    """Raise UserError unless the file at ``path`` is ``package``."""
    found = sha256_file(path)
    if found != package.sha256:
        size = Path(path).stat().st_size
        raise UserError(
            f"{path} ({size} bytes) is not {package.name} {package.version}: its SHA-256 is "
            f"{found}, expected {package.sha256}; it is cut short or another version, get it again"
        )


def unpack_member(deb: str | Path, member: str, target: str | Path) -> Path:
    """Copy one regular file out of a ``.deb`` to ``target``, atomically.

    Only the contents are copied, to the name given here, so the archive cannot choose where. An
    archive with a path out of its folder is refused as a whole.

    Raises:
        UserError: not a Debian package, damaged, hostile, or without that file.
    """
    wanted = member.lstrip("./")
    with _open_data(Path(deb)) as entries:
        for name, content in entries:
            if name == wanted:
                if content is None:
                    raise UserError(f"{deb}: refused, {wanted} is not a regular file in it")
                with atomic_path(target) as temporary:
                    _copy(content, temporary)
                return Path(target)
    raise UserError(f"{deb}: holds no {wanted}")


def unpack_folder(deb: str | Path, prefix: str, target: str | Path) -> dict[str, Path]:
    """Copy the regular files below a folder of a ``.deb`` into ``target``, each atomically.

    Returns:
        The path of every file by its name below ``prefix``, sorted. Links are left out.

    Raises:
        UserError: not a Debian package, damaged, hostile, or without that folder.
    """
    wanted = prefix.strip("./") + "/"
    found: dict[str, Path] = {}
    with _open_data(Path(deb)) as entries, scratch_folder(target) as scratch:
        for name, content in entries:
            if content is not None and name.startswith(wanted):
                path = Path(target) / name.removeprefix(wanted)
                _copy(content, scratch / "file")
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(scratch / "file", path)
                except (FileExistsError, IsADirectoryError, NotADirectoryError):
                    raise UserError(f"{deb}: {name} is a file and a folder in it") from None
                found[name.removeprefix(wanted)] = path
    if not found:
        raise UserError(f"{deb}: holds no file below {wanted}")
    return dict(sorted(found.items()))


def _copy(content: IO[bytes], path: Path) -> None:
    with open(path, "wb") as sink:
        shutil.copyfileobj(content, sink, _BLOCK)


@contextlib.contextmanager
def _open_data(deb: Path) -> Iterator[Iterator[tuple[str, IO[bytes] | None]]]:
    """Read the ``data.tar`` of a ``.deb`` as a stream; a damaged one is a UserError.

    Yields:
        The name of each entry, and its content if it is a regular file.
    """
    try:
        data = _find_data(deb)
        if not data.name.endswith(".zst"):
            with contextlib.closing(data), tarfile.open(fileobj=data, mode="r:*") as tar:
                yield _entries(tar, deb)
            return
        # Python 3.12 reads no zstandard; dpkg does.
        if shutil.which("dpkg-deb") is None:
            raise UserError(f"{deb}: needs dpkg-deb to be unpacked, which is not installed")
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet) as process:
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    yield _entries(tar, deb)
            finally:
                process.kill()
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{deb}: damaged or no Debian package ({reason}); get the package again"
        ) from None


def _find_data(deb: Path) -> Any:
    """Return the member ``data.tar*`` of a package: a file that can seek, with a name."""
    for member in ArFile(str(deb)).getmembers():
        if member.name.startswith("data.tar"):
            return member
    raise ArError("it has no data.tar")


def _entries(tar: tarfile.TarFile, deb: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield the normalised name of each entry, and its content if it is a regular file."""
    left = _ALWAYS + _EXPANDS * deb.stat().st_size
    for number, entry in enumerate(tar):
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if entry.name.startswith("/") or ".." in parts or "\0" in entry.name:
            raise UserError(f"{deb}: refused, its entry {entry.name!r} leaves its folder")
        left -= entry.size
        if entry.size < 0 or left < 0 or entry.issparse() or number > _MOST_ENTRIES:
            raise UserError(f"{deb}: refused, its entry {entry.name!r} expands to too much")
        yield "/".join(parts), tar.extractfile(entry) if entry.isreg() else None


def _download(package: Package, folder: Path) -> Path:
    """Download with apt-get: by the system's lists first, else by lists fetched into ``folder``."""
    if shutil.which("apt-get") is None:
        raise UserError(
            f"no apt-get here to fetch {package.name} {package.version} with; "
            f"download {package.file_name} from a Debian mirror and pass it with --package FILE"
        )
    wanted = ["download", f"{package.name}={package.version}"]
    result, said = None, ""
    if any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        result = _apt(folder, wanted, private_lists=False)
    if result is None or result.returncode:
        # A source that has nothing to do with the package may be broken: go on without it.
        update = _apt(folder, ["-o", "APT::Update::Error-Mode=any", "update"], private_lists=True)
        said = update.stderr + update.stdout if update.returncode else ""
        result = _apt(folder, wanted, private_lists=True)
    found = sorted((folder / "get").glob("*.deb"))
    if result.returncode or not found:
        raise UserError(_explain(package, said + result.stderr + result.stdout))
    return found[0]


def _apt(
    folder: Path, arguments: list[str], private_lists: bool
) -> subprocess.CompletedProcess[str]:
    """Run apt-get with its cache in ``folder``, and with ``private_lists`` its lists too."""
    for part in ("get", "lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    settings = [f"Dir::Cache={folder}/cache", "APT::Sandbox::User=", "Acquire::Retries=2"]
    if private_lists:
        settings += [f"Dir::State::Lists={folder}/lists", "Acquire::Languages=none"]
    options = [word for setting in settings for word in ("-o", setting)]
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", "-q", *options, *arguments],
        cwd=folder / "get",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _explain(package: Package, output: str) -> str:
    """Turn apt-get's output into one line that says what to do."""
    remedy = f"or get {package.file_name} elsewhere and pass it with --package FILE"
    what = f"{package.name} {package.version}"
    if any(sign in output for sign in _NO_NETWORK):
        return f"cannot fetch {what}: no network; run this again when it is back, {remedy}"
    broken = [line for line in output.splitlines() if any(sign in line for sign in _BROKEN)]
    if broken:
        reason = " ".join(broken[0].split()).removeprefix("E: ").removeprefix("W: ")
        return f"cannot fetch {what}, a package source is broken ({reason}); mend it, {remedy}"
    if "was not found" in output or "Unable to locate" in output:
        return f"this system's package sources do not offer {what}; add one that does, {remedy}"
    errors = [line for line in output.splitlines() if line.startswith("E:")] or ["no reason given"]
    reason = errors[0].removeprefix("E:").strip()
    return f"apt-get cannot fetch {what} ({reason}); mend that, {remedy}"

"""Commit, package versions and machine of a process; imports no torch."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("espnet", "torch", "torchaudio", "numpy", "sentencepiece", "kaldiio", "jiwer")
_PUBLISHED = [f":(top,exclude){name}" for name in ("results", "RESULTS.md", "README.md")]


def environment() -> dict:
    """Return ``commit``, ``versions`` and ``machine`` of this process."""
    return {"commit": commit(), "versions": _versions(), "machine": _machine()}


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the repository around ``folder``, or "unknown".

    ``+dirty`` follows if the tree differs from it in any file that publishing does not write, so
    several results can be published in a row without a commit after each.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_PUBLISHED)
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    """Name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if "model name" in line:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _machine() -> dict[str, str | int]:
    return {"cpu": processor(), "cores": os.cpu_count() or 1, "system": platform.system()}

#!/usr/bin/env python3
"""Run a command and measure it whole: wall time, peak memory of all its processes, disk.

Needs nothing but Python's standard library, so that it can measure a command that installs the
rest. Memory is the largest sum, sampled every second, of the resident sets of the command and
its descendants (pages that processes share count in each). Disk is what the folder grew by.

Example, in a fresh clone:
    python3 benchmarks/whole_job.py --json results/benchmarks/whole_job.json -- \
        egs/fotaq/asr1/run.sh
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 3  # of espnet_ext/results/schema.py, which is not installed yet
ROOT = Path(__file__).resolve().parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run, measure, print; return the command's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the measurements here")
    parser.add_argument("command", nargs="+", help="after --: the command")
    args = parser.parse_args()
    before = disk_bytes(ROOT)
    start = time.monotonic()
    process = subprocess.Popen(args.command, cwd=ROOT)
    peak = [0]
    done = threading.Event()
    sampler = threading.Thread(target=sample, args=(process.pid, peak, done))
    sampler.start()
    code = process.wait()
    seconds = time.monotonic() - start
    done.set()
    sampler.join()
    measured = {
        "command": shlex.join(args.command),
        "exit_code": code,
        "wall_seconds": round(seconds, 1),
        "peak_rss_mb": round(peak[0] / 1e6, 1),
        "disk_mb": round((disk_bytes(ROOT) - before) / 1e6, 1),
    }
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(["python3", "benchmarks/whole_job.py", *sys.argv[1:]]),
        "versions": "not measured",
        "machine": {"cpu": cpu(), "cores": len(os.sched_getaffinity(0))},
        "commit": commit(),
        **table(measured),
        "measured": measured,
    }
    text = json.dumps(record, indent=2) + "\n"
    print(text, end="")
    if args.json is not None and code == 0:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.json.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(args.json)
    return code


def table(measured: dict[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    minutes, seconds = divmod(round(measured["wall_seconds"]), 60)
    return {
        "title": "The main job whole",
        "about": "From a fresh clone with no environment: installation, data, training and all "
        "the rest. Memory is that of all processes together.",
        "header": ["command", "time", "peak memory, MB", "disk, MB"],
        "rows": [
            [
                f"`{measured['command']}`",
                f"{minutes} min {seconds} s",
                f"{measured['peak_rss_mb']:,}",
                f"{measured['disk_mb']:,}",
            ]
        ],
        "notes": [],
    }


def sample(root: int, peak: list[int], done: threading.Event) -> None:
    """Keep the largest resident sum of ``root`` and its descendants in ``peak``."""
    while not done.wait(1.0):
        peak[0] = max(peak[0], resident(root))


def resident(root: int) -> int:
    """Resident bytes of a process and its descendants now."""
    parents, sizes = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                text = Path(entry.path, "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            fields = text.rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            sizes[int(entry.name)] = int(fields[21]) * PAGE
    total = 0
    for pid, size in sizes.items():
        ancestor = pid
        while ancestor not in (0, root):
            ancestor = parents.get(ancestor, 0)
        total += size if ancestor == root else 0
    return total


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below ``folder`` take on disk, links not followed."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def commit() -> str:
    """The commit that was measured."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def cpu() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Run the whole fault harness (tests/faults) and count how the faults ended.

Kills at random moments, disks that fill, changed bytes, changed files, streams of hours, and kinds
of bad input. Takes an hour or two on two cores. A failure ends it, and nothing is written.

Example:
    python benchmarks/faults.py --json results/benchmarks/faults.json \\
        --bad_input results/benchmarks/bad_input.json
    python benchmarks/faults.py --only test_bad_inputs --bad_input results/benchmarks/bad_input.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, run_cli
from espnet_ext.results.benchmarks import finish

ROOT = Path(__file__).resolve().parents[1]
RECORD = "ESPNET_EXT_FAULTS"  # tests/faults/conftest.py
ROW = "row"  # of the table of bad input


def main() -> None:
    """Run the tests, then write both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="the tests of one file, as test_kills")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--json", help="write the counts")
    parser.add_argument("--bad_input", help="write the table of bad input")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "faults"
        record.touch()
        begun = time.monotonic()
        run_tests(record, args.only, args.jobs)
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    minutes = (time.monotonic() - begun) / 60
    faults = Counter((kind, outcome) for kind, outcome in lines if kind != ROW)
    finish(
        counts(faults, minutes), {"faults": sorted([*k, n] for k, n in faults.items())}, args.json
    )
    if args.bad_input:
        rows = in_order([row for kind, row in lines if kind == ROW])
        finish(bad_input(rows), {"kinds": len(rows)}, args.bad_input)


def run_tests(record: Path, only: str | None, jobs: int) -> None:
    """Run the harness.

    Raises:
        UserError: a test failed.
    """
    place = f"tests/faults/{only}.py" if only else "tests/faults"
    words = ["-m", "pytest", "-q", "-n", str(jobs), "--dist", "loadfile", place]
    words += [
        "-m",
        "faults or not faults",
        "--deselect",
        "tests/faults/test_bad_inputs.py::test_the_table_has_all_kinds",
    ]
    variables = {**os.environ, RECORD: str(record)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=variables, check=False)
    if done.returncode:
        raise UserError("a fault was not handled; pytest's output above says which")


def in_order(rows: Sequence[list[str]]) -> list[list[str]]:
    """Rows in the order of the kinds, not of the processes that ran them."""
    sys.path.insert(0, str(ROOT))
    from tests.faults.bad_inputs import CASES

    found = {row[0]: row for row in rows}
    return [found[name] for name in CASES]


def counts(faults: Counter[tuple[str, str]], minutes: float) -> dict[str, Any]:
    """The table of what faults led to."""
    kinds = sorted({kind for kind, _ in faults})
    outcomes = sorted({outcome for _, outcome in faults})
    rows = [[kind, *(str(faults[kind, o] or "") for o in outcomes)] for kind in kinds]
    return {
        "title": "Faults",
        "about": "Faults put in on purpose, and how the command, or the same command run again, "
        "ended. After each all results were those of a run without the fault.",
        "header": ["fault", *outcomes],
        "rows": rows,
        "notes": [f"{sum(faults.values()):,} faults in {minutes:.0f} minutes."],
    }


def bad_input(rows: list[list[str]]) -> dict[str, Any]:
    """The table of what is said to bad input."""
    return {
        "title": "Bad input",
        "about": "Each command ends with this line and a non-zero exit, and leaves nothing.",
        "header": ["what is wrong", "verb", "line"],
        "rows": rows,
        "notes": [f"{len(rows)} kinds, in a small recipe that is made on the spot."],
    }


if __name__ == "__main__":
    sys.exit(run_cli("faults.py", main))

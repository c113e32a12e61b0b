#!/usr/bin/env python3
"""Score with NIST's toolkit, as the published error rates of these sets were measured.

Example:
  python local/score.py conf/train_conformer_paper.yaml --sets "eval2000_swbd eval2000_callhm"

Reads exp/<tag>/decode/<variant>/<method>/<set>/text of stage 6 and data/nist/<set>.{stm,glm} of
stage 1; writes sclite's reports to exp/<tag>/nist/<variant>/<method>/<set> and prints a line a
set, and one for halves of a test together. Needs the Debian package sctk.
"""

import argparse
import sys
from pathlib import Path

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.score.sctk import Counts, score_hub, total


def line(name: str, method: str, counts: Counts) -> str:
    """Return a score as a line."""
    return (
        f"{name} {method}: WER {100 * counts.rate:.1f} % ({counts.substitutions} S, "
        f"{counts.insertions} I, {counts.deletions} D of {counts.words} words; NIST's scoring)"
    )


def score(args: argparse.Namespace) -> None:
    """Score every method and set.

    Raises:
        UserError: something was not made by an earlier stage.
    """
    experiment = Experiment.load(args.config, variant=args.variant)
    for method in experiment.recipe.decode:
        tests: dict[str, dict[str, Counts]] = {}
        for name in args.sets.split():
            stm, glm = (Path("data/nist", f"{name}.{suffix}") for suffix in ("stm", "glm"))
            if not stm.is_file() or not glm.is_file():
                raise UserError(f"no {stm} or {glm}; run stage 1 with the folder of {name}")
            text = experiment.decoded(method, name) / "text"
            folder = experiment.folder / "nist" / experiment.variant / method / name
            counts = score_hub(read_table(text), stm, glm, folder)
            print(line(name, method, counts))
            tests.setdefault(name.partition("_")[0], {})[name] = counts
        for test, halves in tests.items():
            if len(halves) > 1:
                print(line(test, method, total(halves.values())))


def main() -> None:
    """Read the command line and score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="training config")
    parser.add_argument("--sets", required=True, help="names of sets")
    parser.add_argument("--variant", help="variant of the model (default: the config's)")
    args = parser.parse_args()
    sys.exit(run_cli("local/score.py", lambda: score(args)))


if __name__ == "__main__":
    main()

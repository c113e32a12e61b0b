#!/usr/bin/env python
"""Time the bookkeeping of a recipe on Kaldi lists of any size: seconds and peak memory.

Makes lists without audio in a folder that is removed: ten words an utterance, of a vocabulary of
20,000, and two systems that change every tenth and every eighth word. Each piece of work runs in
a process of its own, on one core.

Example:
    python benchmarks/scale.py --utterances 1e6 --json scale.json
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.errors import UserError, run_cli
from espnet_ext.results.benchmarks import finish

WORDS, VOCABULARY, SPEAKER, SEED = 10, 20_000, 50, 0  # SPEAKER: utterances of one
SYSTEMS = {"hyp": 0.1, "baseline": 0.125}  # share of words that are another one
DATA = Path("data/train")


def main() -> None:
    """Parse the command line, measure, print a table."""
    args = parse_arguments()
    if args.piece is not None:
        print(json.dumps(measured(args.piece)))
        return
    program = Path(__file__).resolve()
    with tempfile.TemporaryDirectory(prefix="scale_", dir=args.folder) as folder:
        write_lists(Path(folder), args.utterances)
        rows = []
        for piece in PIECES:
            print(f"{piece} ...", file=sys.stderr, flush=True)
            words = [sys.executable, str(program), "--piece", piece]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["no message"]
                raise UserError(f"{piece}: {said[-1]}")
            rows.append({"piece": piece, **json.loads(done.stdout.splitlines()[-1])})
    found = {"utterances": args.utterances, "words": WORDS, "results": rows}
    finish(table(found), found, args.json)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=number, default=100_000, help="such as 1e6")
    parser.add_argument("--folder", type=Path, help="for the lists (default: of temporary files)")
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument("--piece", choices=PIECES, help=argparse.SUPPRESS)
    return parser.parse_args()


def number(word: str) -> int:
    """A whole number of at least 100, perhaps as 1e6."""
    with contextlib.suppress(ValueError, OverflowError):
        if float(word) >= 100 and float(word) == int(float(word)):
            return int(float(word))
    raise argparse.ArgumentTypeError(f"needs a whole number from 100 on, not {word!r}")


def write_lists(folder: Path, utterances: int) -> None:
    """Write a data directory, and the texts of two systems."""
    generator = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    lengths = generator.integers(2, 9, VOCABULARY)
    vocabulary = np.array(["".join(generator.choice(letters, n)) for n in lengths])
    (folder / DATA).mkdir(parents=True)
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> io.TextIOWrapper:
            return stack.enter_context(open(folder / path, "w", encoding="utf-8"))

        names = ("text", "wav.scp", "utt2spk", "utt2dur")
        files = {name: opened(DATA / name) for name in names}
        systems = {name: opened(Path(name)) for name in SYSTEMS}
        for start in range(0, utterances, 10_000):
            count = min(10_000, utterances - start)
            meant = generator.choice(vocabulary, (count, WORDS))
            said = {
                name: np.where(
                    generator.random(meant.shape) < share,
                    generator.choice(vocabulary, meant.shape),
                    meant,
                )
                for name, share in SYSTEMS.items()
            }
            for row in range(count):
                speaker = f"speaker{(start + row) // SPEAKER:06}"
                key = f"{speaker}-{start + row:08}"
                files["text"].write(f"{key} {' '.join(meant[row])}\n")
                files["wav.scp"].write(f"{key} data/audio/{key}.flac\n")
                files["utt2spk"].write(f"{key} {speaker}\n")
                files["utt2dur"].write(f"{key} {2 + row % 9}.5\n")
                for name, stream in systems.items():
                    stream.write(f"{key} {' '.join(said[name][row])}\n")
    speakers: dict[str, list[str]] = {}
    for line in (folder / DATA / "utt2spk").read_text().splitlines():
        key, speaker = line.split()
        speakers.setdefault(speaker, []).append(key)
    lines = (f"{speaker} {' '.join(keys)}\n" for speaker, keys in speakers.items())
    (folder / DATA / "spk2utt").write_text("".join(lines))


def read_lists() -> None:
    """Stage 1: read a data directory and check that its lists agree."""
    from espnet_ext.data.kaldi_dir import read_data_dir

    read_data_dir(DATA)


def stamp_lists() -> None:
    """Every stage: whether its inputs changed."""
    from espnet_ext.files import Stamp

    Stamp("stamp.json", {}, sorted(DATA.iterdir())).write([])


def make_batches() -> None:
    """Stage 4, each process: batches of similar length, by ESPnet's sampler."""
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet2.samplers.build_batch_sampler import build_batch_sampler

    shapes = Path("speech_shape")
    with open(DATA / "utt2dur") as read, open(shapes, "w") as made:
        for line in read:
            key, seconds = line.split()
            made.write(f"{key} {int(100 * float(seconds))},80\n")
    build_batch_sampler(
        type="numel", shape_files=[str(shapes)], fold_lengths=[], batch_size=1, batch_bins=10**7
    )


def score_texts() -> None:
    """Stage 7: WER and CER with a baseline, both bootstraps, MAPSSWE and the alignments."""
    from espnet_ext.stages.score import score_files

    paths = (DATA / "text", Path("hyp"), Path("out"), DATA / "utt2spk", Path("baseline"))
    score_files(*paths)


PIECES: Mapping[str, Callable[[], None]] = {
    "stage 1: read and check the lists": read_lists,
    "all stages: stamp of the lists": stamp_lists,
    "stage 4: batches": make_batches,
    "stage 7: score with a baseline": score_texts,
}


def measured(piece: str) -> dict[str, Any]:
    """Run a piece of work in this process, with its imports."""
    from espnet_ext.bridge.memory import peak_rss_mb

    with contextlib.redirect_stdout(io.StringIO()):
        wall, cpu = time.perf_counter(), time.process_time()
        PIECES[piece]()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds[0], "cpu_seconds": seconds[1], "peak_rss_mb": peak_rss_mb()}


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    return {
        "title": "Bookkeeping of a large set",
        "about": "Lists without audio, ten words an utterance. Each piece of work is a process of "
        "its own on one core; imports are counted.",
        "header": ["piece of work", "seconds", "CPU seconds", "peak MB"],
        "rows": [
            [
                row["piece"],
                f"{row['seconds']:.1f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['peak_rss_mb']:.0f}",
            ]
            for row in found["results"]
        ],
        "notes": [f"{found['utterances']:,} utterances of {found['words']} words."],
    }


if __name__ == "__main__":
    sys.exit(run_cli("scale.py", main))

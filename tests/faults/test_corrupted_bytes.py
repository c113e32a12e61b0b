"""A byte that changes in a file that we wrote: refused by name, made again, or without effect."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.endings import REFUSED, ending, refused_by_name
from tests.fixtures import forked
from tests.fixtures.finished import AVERAGE, DEPLOYED, VERBS, one_line
from tests.recipes.test_kill import written

DECODED = "exp/tiny/decode/merged/ctc_greedy/test"
SCORE = "exp/tiny/score/merged/ctc_greedy/test.json"
ARKS = "dump/fbank40"
STATISTICS = "exp/stats_*/train"
TOKENS = "data/token_list/*"
TRAINED = ("exp/tiny/.train*", "exp/tiny/checkpoint.pth", "exp/tiny/config.yaml", "exp/tiny/*.pth")


@dataclass(frozen=True)
class Kind:
    """A kind of file, and who reads it.

    Attributes:
        pattern: names a file of this kind in a finished recipe.
        verb: reads it.
        without: what has to be absent, so that the verb does its work.
        names: what an error may name in its place: an utterance, or the folder to make again.
    """

    pattern: str
    verb: str
    without: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


KINDS = {
    "audio": Kind("data/audio/*.flac", "features", ("dump",)),
    "ark": Kind(f"{ARKS}/dev/*.ark", "train", ("exp",)),
    "ark, decoded": Kind(f"{ARKS}/test/*.ark", "decode", ("exp/tiny/decode",)),
    "list of arks": Kind(f"{ARKS}/dev/feats.scp", "train", ("exp",), ("dump",)),
    "check sums of arks": Kind(f"{ARKS}/dev/feats.crc32", "train", ("exp",), ("dump",)),
    "numbers of frames": Kind(f"{ARKS}/dev/utt2num_frames", "features"),
    "tokens": Kind(f"{TOKENS}/tokens.txt", "train", ("exp",)),
    "tokens, stage 3 again": Kind(f"{TOKENS}/tokens.txt", "tokens"),
    "SentencePiece model": Kind(f"{TOKENS}/bpe.model", "train", ("exp",)),
    "statistics": Kind(f"{STATISTICS}/feats_stats.npz", "train", TRAINED),
    "lengths": Kind(f"{STATISTICS}/speech_shape", "train", TRAINED),
    "checkpoint": Kind("exp/tiny/checkpoint.pth", "train", ("exp/tiny/.train*",)),
    "averaged model": Kind(AVERAGE, "deploy", ("exp/tiny/deploy",)),
    "config of ESPnet": Kind("exp/tiny/config.yaml", "deploy", ("exp/tiny/deploy",)),
    "run record": Kind("exp/tiny/train.json", "report"),
    "deployed weights": Kind(DEPLOYED, "decode", ("exp/tiny/decode",)),
    "deployed config": Kind("exp/tiny/deploy/merged/config.yaml", "decode", ("exp/tiny/decode",)),
    "deployed tokens": Kind("exp/tiny/deploy/merged/tokens.txt", "decode", ("exp/tiny/decode",)),
    "deploy.json": Kind("exp/tiny/deploy/merged/deploy.json", "report"),
    "hypotheses": Kind(f"{DECODED}/text", "score"),
    "hypotheses, stage 6 again": Kind(f"{DECODED}/text", "decode"),
    "decode.json": Kind(f"{DECODED}/decode.json", "report"),
    "score file": Kind(SCORE, "report"),
    "score file, stage 7 again": Kind(SCORE, "score"),
    "alignments": Kind(SCORE.replace(".json", ".ali.txt"), "score"),
    "stamp": Kind(f"{DECODED}/.done.json", "decode"),
}


def flip(path: Path, generator: random.Random) -> bytes:
    """Change one bit of a file; return the content that it had."""
    before = path.read_bytes()
    place = generator.randrange(len(before))
    changed = bytearray(before)
    changed[place] ^= 1 << generator.randrange(8)
    path.write_bytes(changed)
    return before


def corrupted(recipes, name: str, seed: int) -> str:
    """Change a byte in a copy of the recipe, run the verb; return how it ended."""
    kind = KINDS[name]
    folder = recipes.copy(f"{name}_{seed}".replace("/", "_"), kind.without)
    path = next(p for p in sorted(folder.glob(kind.pattern)) if not p.is_symlink())
    before = flip(path, random.Random(f"{name} {seed}"))
    damaged = path.read_bytes()
    ended = forked.Command(folder, VERBS[kind.verb], folder.with_suffix(".logs")).wait()
    try:
        if ended.code:
            refused_by_name(ended, kind.verb, path, *kind.names)
            assert path.read_bytes() == damaged
            return REFUSED
        expected, found = written(recipes.whole), written(folder)
        other = [key for key, value in found.items() if value != expected.get(key) and _result(key)]
        assert other in ([], [str(path.relative_to(folder))]), other
        return "made again" if path.read_bytes() == before else "no effect"
    finally:
        shutil.rmtree(folder)


def _result(name: str) -> bool:
    """False for files that hold times of their making."""
    return not name.endswith((".stamp", "result.json", "README.md", "LICENSE.md", ".lock"))


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_byte(recipes, name, tally):
    tally("changed byte", ending(corrupted(recipes, name, 0)))


def test_a_changed_byte_that_another_process_reads(recipes):
    """torch sends the error of a process that reads data with its stack trace."""
    folder = recipes.copy("workers", ("exp",))
    path = next(folder.glob(f"{ARKS}/train/*.ark"))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # of the first matrix
    path.write_bytes(content)
    # The statistics are of other processes too.
    words = (*VERBS["train"], "--", "--num_workers", "1")
    ended = forked.Command(folder, words, folder.with_suffix(".logs")).wait()
    assert "its check sum is not that of feats.crc32" in one_line(ended, "train")
    refused_by_name(ended, "train", path)
    shutil.rmtree(folder)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", KINDS)
def test_many_changed_bytes(recipes, name, seed, tally):
    tally("changed byte", ending(corrupted(recipes, name, seed)))

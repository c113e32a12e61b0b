"""Features, statistics and hypotheses that several machines make, each a part, are those of one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet_ext.data.kaldi_dir import read_table
from tests.fixtures import finished, forked, miniature
from tests.recipes.test_kill import written

FEATURES, DECODE = finished.VERBS["features"], finished.VERBS["decode"]
TRAIN = finished.VERBS["train"]


def small_arks() -> None:
    from espnet_ext.stages import features

    features.SHARD = 10


def end(folder, words, *more):
    return forked.Command(folder, (*words, *more), folder / "logs", small_arks).wait()


def run(folder, words, *more):
    ended = end(folder, words, *more)
    assert ended.code == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe before stage 2, and after stage 6 in one piece."""
    root = tmp_path_factory.mktemp("parts")
    before = miniature.make_with_data(root, max_epoch=1)
    forked.load()
    folder = root / "whole"
    shutil.copytree(before, folder)
    for verb in ("features", "tokens", "train", "deploy", "decode"):
        run(folder, finished.VERBS[verb])
    return before, folder


def assert_leftovers_go(folder, words, left, made):
    """What a kill leaves of joined parts, the next call removes."""
    shutil.move(left, made)
    run(folder, words)
    assert not made.exists()


def test_features_in_parts(whole, tmp_path):
    before, after = whole
    folder = tmp_path / "recipe"
    shutil.copytree(before, folder)
    for part in ("3/3", "1/3"):
        run(folder, FEATURES, "--part", part)
    assert not list(folder.glob("dump/*/train/feats.scp"))
    parts = sorted(p.name for p in folder.glob("dump/*/train.parts/*"))
    assert parts == ["1_of_3", "3_of_3"]
    assert len(list(folder.glob("dump/*/train.parts/1_of_3/*.ark"))) == 2  # of the four arks
    assert "up to date" in run(folder, FEATURES, "--part", "1/3")
    (made,) = folder.glob("dump/*/train.parts")
    left = Path(shutil.copytree(made, tmp_path / "left"))
    said = run(folder, FEATURES)  # the second part is missing: it is written
    assert "1_of_3 is up to date" in said and "2_of_3: 10 utterances" in said
    expected = {k: v for k, v in written(after).items() if k.startswith("dump/")}
    found = {k: v for k, v in written(folder).items() if k.startswith("dump/")}
    assert found == expected
    assert len(list(folder.glob("dump/*/train/*.ark"))) == 4
    assert_leftovers_go(folder, FEATURES, left, made)


@pytest.fixture
def not_trained(whole, tmp_path):
    """The recipe after stage 3."""
    folder = Path(shutil.copytree(whole[1], tmp_path / "recipe", symlinks=True))
    for path in (folder / "exp/tiny", *folder.glob("exp/stats_*")):
        shutil.rmtree(path)
    return folder


def test_statistics_in_parts(whole, not_trained, tmp_path):
    (_, after), folder = whole, not_trained
    for part in ("3/3", "1/3"):
        assert "the statistics of this part" in run(folder, TRAIN, "--part", part)
    assert not list(folder.glob("exp/stats_*/train"))
    assert not list(folder.glob("exp/tiny/*.pth"))
    assert "3_of_3 is up to date" in run(folder, TRAIN, "--part", "3/3")
    (parts,) = folder.glob("exp/stats_*/parts")
    left = Path(shutil.copytree(parts, tmp_path / "left"))
    said = run(folder, TRAIN)  # the second part is missing: it is collected
    assert "1_of_3 is up to date" in said and "2_of_3: the statistics" in said
    (made,), (expected,) = (path.glob("exp/stats_*") for path in (folder, after))
    for role in ("train", "valid"):
        for kind in ("speech", "text"):
            name = f"{role}/{kind}_shape"
            assert (made / name).read_text() == (expected / name).read_text(), name
        sums = [np.load(path / role / "feats_stats.npz") for path in (made, expected)]
        for key in ("count", "sum", "sum_square"):
            np.testing.assert_allclose(*(found[key] for found in sums), rtol=1e-5)
    assert not (made / "parts").exists()
    assert list(folder.glob("exp/tiny/*.pth"))
    assert "up to date" in run(folder, TRAIN, "--part", "1/3")
    assert_leftovers_go(folder, (*TRAIN, "--tag", "again"), left, parts)


def test_more_parts_than_utterances(not_trained):
    ended = end(not_trained, TRAIN, "--part", "1/99")
    assert ended.code == 1
    assert "utterances; make fewer parts" in ended.stderr
    assert not list(not_trained.glob("exp/stats_*/train"))


def test_a_training_set_in_splits(not_trained):
    folder = not_trained
    config = folder / "conf/train_split.yaml"
    config.write_text(yaml.safe_dump({"include": "train_tiny.yaml", "recipe": {"splits": 3}}))
    words = ("train", "conf/train_split.yaml", "--threads", "1")
    run(folder, (*words, "--tag", "whole"), "--", "--max_epoch", "2")
    run(folder, (*words, "--tag", "resumed"), "--", "--max_epoch", "1")
    run(folder, (*words, "--tag", "resumed"), "--", "--max_epoch", "2")
    (lists,) = folder.glob("exp/stats_*/splits_3")
    shares = [set(read_table(lists / "speech" / f"split.{n}")) for n in range(3)]
    everything = read_table(folder / "data/train/wav.scp")
    assert sorted(name for share in shares for name in share) == sorted(everything)
    assert all(shares)
    log = (folder / "exp/whole/train.log").read_text()
    assert log.count("Building 2th iter-factory") == 2
    first, second = (
        torch.load(folder / f"exp/{tag}/2epoch.pth", weights_only=True)
        for tag in ("whole", "resumed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fewer_utterances_than_splits(not_trained):
    config = not_trained / "conf/train_split.yaml"
    config.write_text(yaml.safe_dump({"include": "train_tiny.yaml", "recipe": {"splits": 99}}))
    ended = end(not_trained, ("train", str(config)))
    assert ended.code == 1
    assert "recipe: splits: 99, but the training set has 40" in ended.stderr


@pytest.fixture
def not_decoded(whole, tmp_path):
    """The recipe after stage 5."""
    folder = Path(shutil.copytree(whole[1], tmp_path / "recipe", symlinks=True))
    shutil.rmtree(folder / "exp/tiny/decode")
    return folder


def test_a_set_decoded_in_parts(whole, not_decoded, tmp_path):
    (_, after), folder = whole, not_decoded
    run(folder, DECODE, "--part", "2/2")
    texts = list(folder.glob("exp/tiny/decode/**/text"))
    assert not texts
    assert "up to date" in run(folder, DECODE, "--part", "2/2")
    parts = folder / "exp/tiny/decode/merged/ctc_greedy/test/parts"
    left = Path(shutil.copytree(parts, tmp_path / "left"))
    said = run(folder, DECODE)
    assert said.count("1_of_2: 3 utterances") == 2  # both methods
    assert not list(folder.glob("exp/tiny/decode/**/parts"))
    for path in after.glob("exp/tiny/decode/**/text"):
        assert (folder / path.relative_to(after)).read_text() == path.read_text()
    assert "up to date" in run(folder, DECODE, "--part", "1/2")
    assert "up to date" in run(folder, DECODE)
    assert_leftovers_go(folder, DECODE, left, parts)


def test_parts_of_another_list_are_left_alone(not_decoded):
    folder = not_decoded
    run(folder, DECODE, "--part", "1/2")
    scp = next(folder.glob("dump/*/test/feats.scp"))
    scp.write_text("".join(sorted(scp.read_text().splitlines(keepends=True), reverse=True)))
    said = run(folder, DECODE)
    assert "1_of_2" not in said
    text = next(folder.glob("exp/tiny/decode/merged/ctc_greedy/test/text")).read_text()
    names = [line.split()[0] for line in text.splitlines()]
    assert names == sorted(names, reverse=True)

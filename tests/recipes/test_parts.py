"""Features and hypotheses that several machines make, each a part, are those of one."""

import shutil
from pathlib import Path

import pytest

from tests.fixtures import finished, forked, miniature
from tests.recipes.test_kill import written

FEATURES, DECODE = finished.VERBS["features"], finished.VERBS["decode"]


def small_arks() -> None:
    from espnet_ext.stages import features

    features._SHARD = 10


def run(folder, words, *more):
    ended = forked.Command(folder, (*words, *more), folder / "logs", small_arks).wait()
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
    said = run(folder, FEATURES)  # the second part is missing: it is written
    assert "1_of_3 is up to date" in said and "2_of_3: 10 utterances" in said
    expected = {k: v for k, v in written(after).items() if k.startswith("dump/")}
    found = {k: v for k, v in written(folder).items() if k.startswith("dump/")}
    assert found == expected
    assert len(list(folder.glob("dump/*/train/*.ark"))) == 4


@pytest.fixture
def not_decoded(whole, tmp_path):
    """The recipe after stage 5."""
    folder = Path(shutil.copytree(whole[1], tmp_path / "recipe", symlinks=True))
    shutil.rmtree(folder / "exp/tiny/decode")
    return folder


def test_a_set_decoded_in_parts(whole, not_decoded):
    (_, after), folder = whole, not_decoded
    run(folder, DECODE, "--part", "2/2")
    texts = list(folder.glob("exp/tiny/decode/**/text"))
    assert not texts
    assert "up to date" in run(folder, DECODE, "--part", "2/2")
    said = run(folder, DECODE)
    assert said.count("1_of_2: 3 utterances") == 2  # both methods
    assert not list(folder.glob("exp/tiny/decode/**/parts"))
    for path in after.glob("exp/tiny/decode/**/text"):
        assert (folder / path.relative_to(after)).read_text() == path.read_text()
    assert "up to date" in run(folder, DECODE, "--part", "1/2")
    assert "up to date" in run(folder, DECODE)


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

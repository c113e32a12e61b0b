"""espnet-ext check: files that are no training configs are named as what they are."""

import argparse

import pytest

from espnet_ext.cli.check import run
from espnet_ext.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("conf/all.yaml", "systems: {a: {config: b.yaml}}\n", "a grid; run espnet-ext grid"),
        ("conf/train_smal.yaml", None, "did you mean"),
        ("conf/decode.yaml", None, "look in conf/ for train_*.yaml"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, monkeypatch, capsys, name, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/train_small.yaml").write_text("max_epoch: 3\n")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="1 problem in 1 of 1 configs"):
        run(argparse.Namespace(paths=[name], keys=True))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: ") and line.count(name) <= 2 and said in line
    assert ("train_small.yaml" in line) == (said == "did you mean")


def test_fragments_and_grids_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    others = ["conf/include/budget.yaml", "conf/grids/all.yaml"]
    for name in (*others, "conf/train_small.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("encoder: conformer\n")
    run(argparse.Namespace(paths=[*others, "conf/train_small.yaml"], keys=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*others, "conf/train_small.yaml"]
    assert ["skipped" in line for line in lines] == [True, True, False]
    with pytest.raises(UserError, match="no training config among these"):
        run(argparse.Namespace(paths=others, keys=True))

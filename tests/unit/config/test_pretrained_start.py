"""The models that a training starts from."""

import pytest

from espnet_ext.config.pretrained import Start, read_starts
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError


def start_models(folder, given):
    (folder / "conf").mkdir(exist_ok=True)
    config = Config(folder / "conf/train_x.yaml", "x", Recipe(), {"init_param": given})
    return read_starts(config, folder)


def test_models_and_their_parts_are_listed(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    entries = ["a.pth", "b.pth:encoder:encoder", "b.pth::decoder:ctc,joint"]
    whole, part, less = start_models(tmp_path, entries)
    assert whole == Start(tmp_path / "a.pth") and whole.is_whole
    assert part == Start(tmp_path / "b.pth", "encoder", "encoder") and not part.is_whole
    assert less == Start(tmp_path / "b.pth", "", "decoder", ("ctc", "joint"))
    assert start_models(tmp_path, None) == []


def test_a_text_and_a_missing_file_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"init_param: give a list of files, as in \[a\.pth\]"):
        start_models(tmp_path, "a.pth")
    with pytest.raises(UserError, match=r"init_param: no .*a\.pth; train that config first"):
        start_models(tmp_path, ["a.pth"])

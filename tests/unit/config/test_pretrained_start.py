"""The models that a training starts from."""

import pytest

from espnet_ext.config.pretrained import start_files
from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError


def start_models(folder, given):
    (folder / "conf").mkdir(exist_ok=True)
    config = Config(folder / "conf/train_x.yaml", "x", Recipe(), {"init_param": given})
    return start_files(config, folder)


def test_whole_models_are_listed_and_parts_are_not(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    assert start_models(tmp_path, ["a.pth", "b.pth:encoder:encoder"]) == [tmp_path / "a.pth"]
    assert start_models(tmp_path, None) == []


def test_a_text_and_a_missing_file_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"init_param: give a list of files, as in \[a\.pth\]"):
        start_models(tmp_path, "a.pth")
    with pytest.raises(UserError, match=r"init_param: no .*a\.pth; train that config first"):
        start_models(tmp_path, ["a.pth"])

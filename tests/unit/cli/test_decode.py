"""The verb `decode`: what it refuses before anything is read."""

import argparse

import pytest

from espnet_ext.cli import decode as verb
from espnet_ext.errors import UserError


@pytest.mark.parametrize("sets", ["", " "])
def test_no_sets_are_no_success(tmp_path, sets):
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(UserError, match="--sets is empty; name sets as in --sets 'test unseen'"):
        verb.run(parser.parse_args([str(path), "--sets", sets]))

"""The verb `decode`, and what `features` and `score` refuse as it does."""

import argparse

import pytest

from espnet_ext.cli import decode, features, score


@pytest.mark.parametrize("sets", ["", " "])
@pytest.mark.parametrize("verb", [decode, features, score])
def test_no_sets_are_no_success(capsys, verb, sets):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["conf/train_x.yaml", "--sets", sets])
    assert "--sets: it is empty; name sets as in --sets 'test unseen'" in capsys.readouterr().err

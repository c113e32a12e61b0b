"""Names in configs and options that become paths: none leaves its folder."""

import pytest
import yaml

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError, check_name
from espnet_ext.experiment import Experiment


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../b", "/etc", ".x", "-x", "a b", "a\0", "a\nb", "", "a//b", "a\\b", 201 * "a"],
)
def test_names_that_leave_a_folder_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="a name has no blank"):
        check_name(name, "the tag")
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    if name:
        with pytest.raises(UserError, match="a name has no blank"):
            Experiment.load(path, variant=name)
    with pytest.raises(UserError, match="a name has no blank"):
        load_config(path, tag=name)
    for key in ("train_set", "dev_set", "baseline", "variant", "labels", "target"):
        path.write_text(yaml.safe_dump({"encoder": "conformer", "recipe": {key: name}}))
        with pytest.raises(UserError, match=r"a name has no blank|must be"):
            load_config(path)


def test_names_of_sets_folds_and_results_stay_inside(tmp_path):
    from espnet_ext.data.corpora.folds import read_folds

    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    with pytest.raises(UserError, match=r"the set '../x': a name has no blank"):
        Experiment.load(path).decoded("ctc_greedy", "../x")
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds/voice").write_text("voice-a\n../x\n")
    with pytest.raises(UserError, match=r"folds/voice: '../x': a name has no blank"):
        read_folds(tmp_path, "voice")

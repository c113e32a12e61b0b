"""Names in configs and options that become paths: none leaves its folder."""

import pytest
import yaml

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError, check_name
from espnet_ext.experiment import Experiment
from espnet_ext.run_files import decoded_variants


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


def test_hypotheses_of_folds_are_listed_by_variant(tmp_path):
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    run = Experiment.load(path, "grid_some/x")
    run = Experiment.of(run.config, "merged", tmp_path)
    found = {}
    for variant in ("merged", "2L-48-4b"):
        text = run.exp / "grid_some/x/decode" / variant / "classify/voice-a/test/text"
        text.parent.mkdir(parents=True)
        text.write_text("u low\n")
        found[variant] = text
    assert decoded_variants(run.other_run("grid_some/x"), "classify", "voice-a/test") == found
    assert decoded_variants(run.other_run("grid_some/x"), "classify", "voice-b/test") == {}


def test_the_stage_that_makes_a_missing_set_is_named(tmp_path):
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\nrecipe: {speeds: [0.9]}\n")
    run = Experiment.of(load_config(path), None, tmp_path)
    with pytest.raises(UserError, match=r"data/train_sp/text; run stage 2"):
        run.require_references(run.sets[0])
    with pytest.raises(UserError, match=r"data/dev/text; run stage 1"):
        run.require_references(run.sets[1])

"""What of a config decides a training: records of before a key was added stay valid."""

import json

from espnet_ext.config.training import READ_LATER, load_config, training_settings

CONFIG = """
max_epoch: 3
recipe:
  vocabulary: 60
  speeds: [0.9, 1.1]
  decode: {ctc_greedy: {}}
  variant: merged
"""


def settings(tmp_path, text: str) -> dict:
    path = tmp_path / "train_small_xs.yaml"
    path.write_text(text)
    return training_settings(json.loads(json.dumps(load_config(path).as_dict())))


def test_a_record_without_a_key_equals_one_with_its_default(tmp_path):
    path = tmp_path / "train_small_xs.yaml"
    path.write_text(CONFIG)
    now = load_config(path).as_dict()
    assert {"splits", "labels", "classes", "merges"} <= now["recipe"].keys()
    before = {**now, "recipe": {key: now["recipe"][key] for key in ("vocabulary", "speeds")}}
    assert training_settings(before) == training_settings(now)
    assert training_settings(now)["recipe"] == {"vocabulary": 60, "speeds": [0.9, 1.1]}


def test_only_what_later_stages_read_may_change(tmp_path):
    before = settings(tmp_path, CONFIG)
    assert settings(tmp_path, CONFIG.replace("variant: merged", "variant: 2L-48-4b")) == before
    assert settings(tmp_path, CONFIG.replace("ctc_greedy", "ctc_att_beam")) == before
    assert settings(tmp_path, CONFIG + "  splits: 2\n") != before
    assert settings(tmp_path, CONFIG.replace("60", "61")) != before
    assert settings(tmp_path, CONFIG.replace("max_epoch: 3", "max_epoch: 4")) != before
    assert "splits" not in READ_LATER

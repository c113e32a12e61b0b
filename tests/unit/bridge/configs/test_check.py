"""The verb check: every mistake named with the nearest valid name, in one process."""

import argparse
import re
from pathlib import Path

import pytest
import yaml

from espnet_ext.bridge.configs.signatures import cached_signatures
from espnet_ext.config.training import readable_config
from tests.fixtures.examined import examine_file

BASE = {
    "frontend": "kaldi_fbank",
    "frontend_conf": {"n_mels": 40},
    "normalize": "global_mvn",
    "token_type": "bpe",
    "encoder": "hrf_conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 2,
        "rel_pos_type": "latest",
        "cnn_module_kernel": 7,
        "hrf": {"sites": ["ffn"], "ratio": 2},
    },
    "model_conf": {"ctc_weight": 1.0},
    "optim": "adamw",
    "optim_conf": {"lr": 0.002},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 100},
    "batch_type": "numel",
    "batch_bins": 1000,
    "best_model_criterion": [["valid", "loss", "min"]],
    "recipe": {"vocabulary": 50},
}


@pytest.fixture
def examine(tmp_path):
    """Examine BASE, in a file of its own, with the given keys laid over it by ``include:``."""

    def run(**over):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        path = tmp_path / "train_x.yaml"
        path.write_text(yaml.safe_dump({"include": "base.yaml", **over}))
        return examine_file(path)

    return run


def test_a_right_config_has_no_problem_and_is_built(examine):
    found = examine()
    assert found.problems == []
    assert found.warnings == []
    assert found.variants == ("merged",)
    # HRF with r = 2, n = 2: (o, i) becomes (o, 2o) and (2o, i), plus an inner bias of 2o.
    plain = examine(encoder_conf={"hrf": {"sites": ["ffn"], "ratio": 1}})
    grown = sum(2 * o * (o + i + 1) - o * (o + i + 1) for o, i in ((32, 16), (16, 32))) * 2
    assert found.parameters - plain.parameters == grown


@pytest.mark.parametrize(
    ("over", "wrong", "right"),
    [
        ({"encoder_cnf": {}}, "encoder_cnf", "encoder_conf"),
        ({"max_epochs": 3}, "max_epochs", "max_epoch"),
        ({"includes": []}, "includes", "include"),
        ({"encoder_conf": {"output_sise": 16}}, "output_sise", "output_size"),
        ({"encoder": "hrf_confromer"}, "hrf_confromer", "hrf_conformer"),
        ({"frontend": "kaldi_fbanks"}, "kaldi_fbanks", "kaldi_fbank"),
        ({"frontend_conf": {"n_mel": 40}}, "n_mel", "n_mels"),
        ({"normalize": "globl_mvn"}, "globl_mvn", "global_mvn"),
        ({"specaug": "specaug", "specaug_conf": {"num_freq_masks": 1}}, "masks", "num_freq_mask"),
        ({"decoder": "transfromer"}, "transfromer", "transformer"),
        ({"ctc_conf": {"droput_rate": 0.1}}, "droput_rate", "dropout_rate"),
        ({"model_conf": {"ctc_wieght": 1.0}}, "ctc_wieght", "ctc_weight"),
        ({"optim": "adamv"}, "adamv", "adam"),
        ({"optim_conf": {"weight_decya": 0.1}}, "weight_decya", "weight_decay"),
        ({"scheduler": "warmupl"}, "warmupl", "warmuplr"),
        ({"scheduler_conf": {"warmup_step": 3}}, "warmup_step", "warmup_steps"),
        ({"encoder_conf": {"hrf": {"ratoi": 2}}}, "ratoi", "ratio"),
        ({"encoder_conf": {"hrf": {"sites": ["fnn"]}}}, "fnn", "ffn"),
        ({"encoder": "conformer"}, "hrf", "encoder: hrf_conformer"),
        ({"batch_type": "numels"}, "numels", "numel"),
        ({"recipe": {"averge": 3}}, "averge", "average"),
        ({"recipe": {"features": "rav"}}, "rav", "raw"),
        ({"recipe": {"sentencepiece": "bp"}}, "bp", "bpe"),
        ({"recipe": {"variant": "mergd"}}, "mergd", "merged"),
        ({"recipe": {"average_by": "valid.los"}}, "valid.los", "valid.loss"),
        ({"recipe": {"decode": {"ctc_gredy": {}}}}, "ctc_gredy", "ctc_greedy"),
        ({"recipe": {"decode": {"ctc_att_beam": {"beam": 3}}}}, "beam", "beam_size"),
    ],
)
def test_a_wrong_name_gives_one_line_with_the_nearest(examine, over, wrong, right):
    (problem,) = examine(**over).problems
    assert wrong in problem
    assert f"did you mean {right}?" in problem.replace("'", "")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"max_epoch": "many"}, ("max_epoch", "many")),
        ({"max_epoch": 2.5}, ("max_epoch", "2.5")),
        ({"use_amp": 3}, ("use_amp", "3")),
        ({"encoder": 3}, ("encoder", "3")),
        ({"encoder_conf": None}, ("encoder_conf", "None")),
        ({"encoder_conf": {"linear_units": "many"}}, ("linear_units", "many")),
        ({"encoder_conf": {"macaron_style": "yes please"}}, ("macaron_style", "bool")),
        (
            {"encoder_conf": {"attention_heads": 5}},
            ("attention_heads: 5", "output_size: 16", "1, 2, 4"),
        ),
        ({"encoder_conf": {"hrf": {"ratio": 0.5}}}, ("ratio", "0.5")),
        ({"encoder_conf": {"hrf": ["ffn"]}}, ("hrf", "ffn")),
        ({"encoder_conf": {"use_cnn_module": False, "hrf": {"sites": ["conv"]}}}, ("site", "conv")),
        ({"optim_conf": {"lr": "small"}}, ("lr", "small")),
        ({"optim_conf": {"lr": -1.0}}, ("adamw", "-1.0")),
        ({"best_model_criterion": "loss"}, ("best_model_criterion", "loss")),
        ({"token_type": "word"}, ("token_type", "word")),
        ({"recipe": ["raw"]}, ("recipe", "raw")),
        ({"recipe": {"average": 0}}, ("average", "0")),
        ({"recipe": {"average": True}}, ("average", "True")),
        ({"recipe": {"vocabulary": "200"}}, ("vocabulary", "'200'")),
        ({"recipe": {"baseline": 3}}, ("baseline", "3")),
        ({"recipe": {"decode": "ctc_greedy"}}, ("decode", "ctc_greedy")),
        ({"recipe": {"decode": {"ctc_att_beam": {"beam_size": 0}}}}, ("beam_size", "0")),
        ({"recipe": {"decode": {"ctc_att_beam": {"ctc_weight": 2}}}}, ("ctc_weight", "2")),
        ({"frontend": "default", "recipe": {"features": "ark"}}, ("features: ark", "kaldi_fbank")),
    ],
)
def test_a_wrong_value_is_named(examine, over, words):
    problems = examine(**over).problems
    assert problems
    assert all(word in " | ".join(problems) for word in words), problems
    assert not any("\n" in problem for problem in problems)


def test_unknown_options_of_a_method_are_found_by_keys_alone_and_said_once(examine, tmp_path):
    said = "encoder_conf: hrf: unknown option of hrf: 'ratoi'; did you mean 'ratio'?"
    wrong = {"sites": ["ffn"], "ratoi": 2}
    assert examine(encoder_conf={"hrf": wrong}).problems == [said]
    config, _ = readable_config(tmp_path / "train_x.yaml")
    assert cached_signatures().problems(config) == [said]


def test_all_problems_of_a_file_are_listed(examine):
    found = examine(
        encoder_cnf={},
        encoder_conf={"output_sise": 1, "linear_unit": 2},
        recipe={"averge": 1, "average": 0},
    )
    message = " | ".join(found.problems)
    wrong = ("encoder_cnf", "output_sise", "linear_unit", "averge", "average must")
    assert len(found.problems) == len(wrong)
    assert all(word in message for word in wrong)
    assert found.parameters == 0


@pytest.mark.parametrize(
    ("over", "word"),
    [
        ({"init": "xavier_uniform"}, "init"),
        ({"decoder": "transformer"}, "decoder"),
        ({"model_conf": {"lsm_weight": 0.1}}, "lsm_weight"),
        ({"model_conf": {"interctc_weight": 0.3}}, "interctc_weight"),
        ({"encoder_conf": {"interctc_layer_idx": [1]}}, "interctc_layer_idx"),
        ({"specaug_conf": {"num_freq_mask": 1}}, "specaug_conf"),
        ({"normalize": None, "normalize_conf": {"norm_vars": False}}, "normalize_conf"),
        ({"normalize_conf": {"stats_file": "x.npz"}}, "stats_file"),
        ({"batch_size": 4}, "batch_size"),
        ({"fold_length": [80]}, "fold_length"),
        ({"chunk_length": 80}, "chunk_length"),
        ({"output_dir": "exp"}, "output_dir"),
        ({"keep_nbest_models": [3]}, "keep_nbest_models"),
        ({"token_type": "char"}, "vocabulary"),
        ({"recipe": {"decode": {"ctc_att_beam": {"ctc_weight": 0.3}}}}, "ctc_weight"),
        ({"recipe": {"features": "ark"}, "speech_volume_normalize": 0.5}, "speech_volume"),
    ],
)
def test_a_setting_without_effect_is_a_warning_and_no_problem(examine, over, word):
    found = examine(**over)
    assert found.problems == []
    (warning,) = found.warnings
    assert word in warning


def test_specaug_switched_off_makes_its_settings_idle(examine):
    conf = {"apply_time_warp": False, "time_warp_window": 5, "apply_time_mask": False}
    found = examine(specaug="specaug", specaug_conf=conf)
    assert found.problems == []
    assert len(found.warnings) == 1
    assert "time_warp_window" in found.warnings[0]


def test_a_model_without_ctc_cannot_decode_with_it(examine):
    attention = {"decoder": "transformer", "decoder_conf": {"linear_units": 16, "num_blocks": 1}}
    attention["model_conf"] = {"ctc_weight": 0.0}
    (problem,) = examine(**attention).problems
    assert "ctc_greedy" in problem
    beam = {"ctc_greedy": None, "ctc_att_beam": {"ctc_weight": 0.0}}
    assert "ctc_greedy" in examine(**attention, recipe={"decode": beam}).problems[0]
    attention["model_conf"] = {"ctc_weight": 0.3}
    assert examine(**attention).problems == []


def test_broken_files_are_problems_of_one_line(tmp_path):
    files = {
        "missing": "include: nowhere.yaml\n",
        "cycle": "include: train_cycle.yaml\n",
        "syntax": "encoder: [conformer\n",
        "list": "- encoder\n",
    }
    words = {"missing": "nowhere.yaml", "cycle": "itself", "syntax": "YAML", "list": "keys"}
    for name, text in files.items():
        path = tmp_path / f"train_{name}.yaml"
        path.write_text(text)
        (problem,) = examine_file(path).problems
        assert words[name] in problem
        assert "\n" not in problem
    (problem,) = examine_file(tmp_path / "train_absent.yaml").problems
    assert "train_absent.yaml" in problem


def test_the_verb_searches_folders_and_fails_if_any_config_is_wrong(tmp_path, capsys):
    from espnet_ext.cli import check
    from espnet_ext.errors import UserError

    deep = tmp_path / "conf" / "deep"
    deep.mkdir(parents=True)
    (deep / "train_good.yaml").write_text(yaml.safe_dump(BASE))
    (deep / "fragment.yaml").write_text("nonsense: 1\n")
    check.run(argparse.Namespace(paths=[str(tmp_path)], keys=False))
    assert "train_good.yaml: ok" in capsys.readouterr().out
    (tmp_path / "train_bad.yaml").write_text(yaml.safe_dump({**BASE, "seeed": 1, "encodr": 2}))
    with pytest.raises(UserError):
        check.run(argparse.Namespace(paths=[str(tmp_path)], keys=False))
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 2
    assert all("train_bad.yaml: " in line for line in printed.err.splitlines())
    assert "train_good.yaml: ok" in printed.out


def test_nothing_to_check_is_an_error(tmp_path):
    from espnet_ext.cli.check import find_configs
    from espnet_ext.errors import UserError

    with pytest.raises(UserError):
        find_configs([str(tmp_path)])
    path = tmp_path / "train_a.yaml"
    path.write_text("")
    assert find_configs([str(tmp_path), str(path)]) == [Path(path)]


def test_checking_leaves_the_random_generator_alone(examine):
    import torch

    state = torch.get_rng_state()
    examine()
    assert torch.equal(state, torch.get_rng_state())


STREAM = {
    "decoder": "transducer",
    "decoder_conf": {"hidden_size": 8},
    "joint_net_conf": {"joint_space_size": 8},
    "model_conf": {"ctc_weight": 0.0, "report_cer": False, "report_wer": False},
    "recipe": {"decode": {"transducer_greedy": {"batch_size": 4}, "transducer_beam": {}}},
}


def test_a_transducer_has_its_own_decoding_methods(examine):
    assert examine(**STREAM).problems == []
    for decode, said in (
        ({"ctc_greedy": {}}, "ctc_greedy needs CTC"),
        ({"ctc_att_beam": {}}, "use transducer_beam"),
        ({"transducer_greedy": {"beam_size": 2}}, "beam_size"),
        ({"transducer_beam": {"batch_size": 0}}, "batch_size must be"),
    ):
        (problem,) = examine(**{**STREAM, "recipe": {"decode": decode}}).problems
        assert said in problem
    (problem,) = examine(recipe={"decode": {"transducer_greedy": {}}}).problems
    assert "needs decoder: transducer" in problem
    (problem,) = examine(**{**STREAM, "joint_net_conf": {"joint_size": 8}}).problems
    assert "joint_space_size" in problem
    (problem,) = examine(**{**STREAM, "decoder_conf": {"embedding_size": 8}}).problems
    assert "embed_size" in problem


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"chunk_ms": 100}, "chunk_ms 100 is no multiple of 40 ms"),
        ({"residual": {"share": 9}}, "more than the encoder's 4 layers"),
        ({"residual": {"share": 2, "rank": 99}}, "rank 99 is more than"),
        ({"residual": {"share": [2, 1]}}, "hold 3 layers, the encoder has 4"),
        ({"residual": {"shares": 2}}, "share"),
    ],
)
def test_streaming_and_residual_options_are_checked(tmp_path, conf, said):
    encoder = {"output_size": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 4}
    residual = {"residual": {"share": 2, "rank": 2}}
    conf = {**encoder, "conv_channels": 4, **residual, **conf}
    keys = {**BASE, **STREAM, "encoder": "residual_streaming_transformer", "encoder_conf": conf}
    (tmp_path / "train_y.yaml").write_text(yaml.safe_dump(keys))
    (problem,) = examine_file(tmp_path / "train_y.yaml").problems
    assert said in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"task": "st"}, "task: st needs the language to translate into, as in target: en"),
        ({"task": "st", "target": False}, "target must be a language.*YAML reads no as false"),
        ({"task": "st", "target": "englishtext"}, "target: no language 'englishtext'"),
        ({"target": "en"}, "target: en is for task st, not for task asr"),
        ({"task": "translation", "target": "en"}, "unknown task 'translation'"),
    ],
)
def test_a_target_language_is_needed_by_translation_and_by_nothing_else(examine, recipe, message):
    found = examine(recipe=recipe)
    assert len([p for p in found.problems if re.search(message, p)]) == 1, found.problems


def test_a_translating_config_is_checked_as_a_recogniser_is(examine):
    found = examine(recipe={"task": "st", "target": "zh-CN"})
    assert found.problems == []
    assert found.parameters == examine().parameters
    wrong = examine(ctc_conf={"dropout": 0.1}, recipe={"task": "st", "target": "en"})
    assert any("ctc_conf: unknown key of CTC" in p for p in wrong.problems)


def test_options_of_a_family_are_checked_and_where_they_belong(examine):
    found = examine(encoder="rnn", encoder_conf={"nested": {}}).problems
    (message,) = [problem for problem in found if "nested" in problem]
    assert "did you mean encoder: nested_conformer or nested_transformer" in message
    assert any("did you mean encoder: hrf_rnn?" in problem for problem in found)
    for options, words in (({"bits": [5]}, "bits must be"), ({"depth": [2]}, "depths")):
        found = examine(encoder="nested_conformer", encoder_conf={"nested": options}).problems
        assert any(words in problem for problem in found if "nested" in problem)


def test_matrices_that_a_group_does_not_divide_are_named(examine):
    # 16 inputs of attention, and 32 of the second feed-forward layer, which a group of 32 divides.
    nested = {"bits": [32, 4], "per": "group", "group": 32}
    over = {"encoder": "nested_conformer", "encoder_conf": {"hrf": None, "nested": nested}}
    found = examine(**over)
    assert found.problems == []
    (warning,) = (line for line in found.warnings if "group" in line)
    assert "group: 32 does not divide the 16 inputs of" in warning
    nested["group"] = 16
    assert not [line for line in examine(**over).warnings if "group" in line]

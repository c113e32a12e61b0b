"""Footprints against counts by hand, against ESPnet's own classes, and against real files."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from espnet_ext.config.training import load_config
from espnet_ext.experiment import Experiment

WIDTH, HEADS, FFN, BLOCKS, KERNEL, MELS, VOCABULARY = 32, 4, 48, 3, 7, 40, 60

PLAIN = {
    "frontend": "kaldi_fbank",
    "frontend_conf": {"n_mels": MELS},
    "normalize": "global_mvn",
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": WIDTH,
        "attention_heads": HEADS,
        "linear_units": FFN,
        "num_blocks": BLOCKS,
        "macaron_style": True,
        "rel_pos_type": "latest",
        "cnn_module_kernel": KERNEL,
    },
    "model_conf": {"ctc_weight": 1.0},
    "recipe": {"vocabulary": VOCABULARY},
}
HRF = {"encoder": "hrf_conformer", "encoder_conf": {"hrf": {"sites": ["all"], "ratio": 2}}}
DECODER = {
    "decoder": "transformer",
    "decoder_conf": {"linear_units": 24, "num_blocks": 2, "attention_heads": 2},
    "model_conf": {"ctc_weight": 0.3},
}


@pytest.fixture(scope="module")
def measure():
    from espnet_ext.bridge.configs.footprint import measure

    def of_config(config, vocabulary=None, variant=None):
        return measure(Experiment.of(config, variant), vocabulary)

    return of_config


@pytest.fixture
def config(tmp_path):
    """Write PLAIN with keys laid over it and load it."""

    def write(**over):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(PLAIN))
        path = tmp_path / "train_x.yaml"
        path.write_text(yaml.safe_dump({"include": "base.yaml", **over}))
        return load_config(path)

    return write


def linear(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


def frames_after_two_convolutions(frames: int) -> int:
    return ((frames - 1) // 2 - 1) // 2


def test_conformer_blocks_by_hand(measure, config):
    ffn = 2 * (linear(WIDTH, FFN) + linear(FFN, WIDTH))
    attention = 4 * linear(WIDTH, WIDTH) + WIDTH * WIDTH + 2 * WIDTH  # + positions, two biases
    convolution = linear(WIDTH, 2 * WIDTH) + WIDTH * (KERNEL + 1)
    convolution += linear(WIDTH, WIDTH)
    norms = 6 * 2 * WIDTH  # one of them is the convolution's batch normalisation
    parameters = measure(config())["parameters"]
    assert parameters["encoder_blocks"] == BLOCKS * (ffn + attention + convolution)
    assert parameters["encoder_norms"] == BLOCKS * norms
    assert parameters["ctc"] == linear(WIDTH, VOCABULARY)
    subsampled = frames_after_two_convolutions(MELS)
    embed = linear(9, WIDTH) + linear(9 * WIDTH, WIDTH) + linear(WIDTH * subsampled, WIDTH)
    assert parameters["encoder"] == (
        parameters["encoder_blocks"] + BLOCKS * norms + embed + 2 * WIDTH
    )
    assert parameters["total"] == parameters["encoder"] + parameters["ctc"]
    assert parameters["decoder"] == parameters["frontend"] == 0


def test_macs_by_hand(measure, config):
    frames = frames_after_two_convolutions(1000)
    halves = [(1000 - 1) // 2, (MELS - 1) // 2]
    bins = frames_after_two_convolutions(MELS)
    embed = 9 * WIDTH * halves[0] * halves[1] + 9 * WIDTH * WIDTH * frames * bins
    embed += frames * WIDTH * bins * WIDTH
    positions = 2 * frames - 1
    ffn = frames * 4 * WIDTH * FFN
    projections = (4 * frames + positions) * WIDTH * WIDTH
    attention = frames * WIDTH * (frames + positions + frames)  # content, position, values
    convolution = frames * (3 * WIDTH * WIDTH + WIDTH * KERNEL)
    block = ffn + projections + attention + convolution
    total = embed + BLOCKS * block + frames * WIDTH * VOCABULARY
    assert measure(config())["macs_per_second"] == round(total / 10)


@pytest.mark.parametrize("over", [{}, DECODER, {"recipe": {"features": "ark"}}])
def test_hrf_deploys_to_the_footprint_of_the_baseline(measure, config, over):
    baseline = measure(config(**over))
    hrf = measure(config(**{**over, **HRF}))
    for key in ("parameters", "bytes", "macs_per_second"):
        assert hrf[key] == baseline[key]
    assert baseline["training_parameters"] == baseline["parameters"]
    assert hrf["training_parameters"]["total"] > 2 * baseline["parameters"]["total"]
    assert (hrf["parameters"]["decoder"] > 0) == ("decoder" in over)


# A deployed model that takes features has no statistics to tell how many.
TELEPHONE = {"frontend_conf": {"fs": 8000, "n_mels": MELS}, "normalize": "utterance_mvn"}


@pytest.mark.parametrize(
    "over", [{}, HRF, {**HRF, "recipe": {"features": "ark"}}, {**HRF, **TELEPHONE}]
)
def test_bytes_are_those_of_the_file_that_deploy_writes(measure, config, tmp_path, over):
    import torch
    from espnet2.tasks.asr import ASRTask

    from espnet_ext.bridge.deployed.folder import Speech, deploy_experiment
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    chosen = config(**over)
    experiment = Experiment.of(chosen, root=tmp_path)
    experiment.folder.mkdir(parents=True)
    parser = ASRTask.get_parser()
    parser.set_defaults(**chosen.espnet)
    arguments = vars(parser.parse_args([]))
    if chosen.recipe.features == "ark":
        arguments |= {"frontend": None, "frontend_conf": {}, "input_size": MELS}
    tokens = ["<blank>", "<unk>", *map(chr, range(97, 97 + VOCABULARY - 3)), "<sos/eos>"]
    statistics = tmp_path / "stats.npz"
    sums = np.ones(MELS, np.float32)
    np.savez(statistics, count=7, sum=sums, sum_square=9 * sums)
    arguments["token_list"] = tokens
    if arguments["normalize"] == "global_mvn":
        arguments["normalize_conf"] = {"stats_file": str(statistics)}
    model = ASRTask.build_model(argparse.Namespace(**arguments))
    torch.save(model.state_dict(), tmp_path / "1epoch.pth")
    experiment.espnet_config.write_text(yaml.safe_dump(_plain(arguments)))
    speech = Speech([0.1 * torch.randn(16000)], SpeechInput(experiment.rate))
    made = deploy_experiment(experiment, tmp_path / "1epoch.pth", speech)
    found = measure(chosen)
    assert found["bytes"] == experiment.weights.stat().st_size == made["bytes"]
    assert found["parameters"] == made["parameters"]
    assert found["macs_per_second"] == made["macs_per_second"]


def _plain(value):
    """Tuples as lists, which YAML can hold."""
    return json.loads(json.dumps(value))


def test_a_recurrent_encoder_is_said_to_be_not_measured(measure, tmp_path):
    path = tmp_path / "train_rnn.yaml"
    keys = {"frontend": "kaldi_fbank", "encoder": "rnn", "model_conf": {"ctc_weight": 1.0}}
    conf = {"hidden_size": 8, "output_size": 8, "num_layers": 1}
    path.write_text(yaml.safe_dump({**keys, "encoder_conf": conf}))
    found = measure(load_config(path))
    assert found["macs_per_second"] == "not measured"
    assert found["parameters"]["total"] > 0


def test_shared_parameters_count_once(config):
    from espnet_ext.bridge.build import build_model
    from espnet_ext.methods.deploy import footprint

    model = build_model(Experiment.of(config()))
    before = footprint(model)
    first, second = model.encoder.encoders[0], model.encoder.encoders[1]
    second.feed_forward = first.feed_forward
    saved = linear(WIDTH, FFN) + linear(FFN, WIDTH)
    assert footprint(model)["encoder_blocks"] == before["encoder_blocks"] - saved


def asked(*words: object) -> argparse.Namespace:
    """Arguments of the verb."""
    from espnet_ext.cli import footprint

    parser = argparse.ArgumentParser()
    footprint.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_token_list_decides_when_it_exists(config, tmp_path, monkeypatch, capsys):
    from espnet_ext.cli import footprint

    monkeypatch.chdir(tmp_path)
    args = asked(config(token_type="char").path, "--json")
    footprint.run(args)
    said = capsys.readouterr()
    assert said.err == "no token list yet: 31 tokens assumed; see --vocabulary\n"
    english = json.loads(said.out)
    tokens = Path("data/token_list/char/tokens.txt")
    tokens.parent.mkdir(parents=True)
    tokens.write_text("".join(f"{k}\n" for k in range(31 + 9)))
    footprint.run(args)
    listed = json.loads(capsys.readouterr().out)
    assert listed["parameters"]["ctc"] - english["parameters"]["ctc"] == 9 * (WIDTH + 1)
    assert set(listed) == {"parameters", "training_parameters", "bytes", "macs_per_second"}
    args.json = False
    footprint.run(args)
    assert f"{listed['bytes']:,}" in capsys.readouterr().out


def test_a_wrong_config_or_variant_is_one_line(config):
    from espnet_ext.cli import footprint, variants
    from espnet_ext.errors import UserError

    wrong = config(encoder_conf={"output_sise": 3}).path
    for verb in (footprint, variants):
        with pytest.raises(UserError, match="output_size"):
            verb.run(asked(wrong))
    with pytest.raises(UserError, match="merged"):
        footprint.run(asked(config().path, "--variant", "mergd"))
    with pytest.raises(UserError, match="--vocabulary 0: blank, unknown"):
        footprint.run(asked(config().path, "--vocabulary", 0))


def test_variants_lists_every_one_with_its_size(measure, config, capsys):
    from espnet_ext.cli import variants

    chosen = config(**HRF)
    variants.run(argparse.Namespace(config=chosen.path))
    header, line, *rounded = capsys.readouterr().out.splitlines()
    found = measure(chosen)
    assert header.split() == ["variant", "parameters", "bytes", "encoder"]
    assert line.split()[0] == "merged"
    expected = [f"{kind}+{bits}b" for kind in ("merged", "whole") for bits in (8, 6, 4, 3, 2)]
    assert [one.split()[0] for one in rounded] == expected
    for one in rounded:
        variant = one.split()[0]
        assert f"{measure(chosen, variant=variant)['bytes']:,}" in one
    assert f"{found['parameters']['total']:,}" in line
    assert f"{found['bytes']:,}" in line

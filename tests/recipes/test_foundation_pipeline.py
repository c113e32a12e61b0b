"""A whole small Whisper through all stages: fine-tuned, with CTC besides, and as it is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
import yaml

import espnet_ext
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.data.audio import read_wave, write_flac
from espnet_ext.data.kaldi_dir import Utterance, read_table, write_data_dir
from espnet_ext.data.pauses import cut_at_pauses
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.compare import next_scores
from espnet_ext.export.folder import export
from espnet_ext.export.runtime import run_onnx
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import dequantised, read_member
from tests.fixtures import forked, foundation, ranks
from tests.fixtures.miniature import ROOT, merged

MODEL = "downloads/model"
BASE = {
    "include": "../../../conf/base/foundation.yaml",
    "exclude": ["recipe.decode"],
    "encoder_conf": {"path": MODEL, "masks": {"apply_time_warp": False, "apply_time_mask": False}},
    "decoder_conf": {"path": MODEL},
    "batch_type": "sorted",
    "batch_size": 4,
    "max_epoch": 1,
    "optim_conf": {"lr": 0.003},
    "scheduler_conf": {"warmup_steps": 2},
    "recipe": {"average": 1, "decode": {"attention_greedy": {"batch_size": 3}}},
}
BEAM = {"beam_size": 2, "ctc_weight": 0.0}
NESTED = {"bits": [32, 4], "over": "model", "per": "group", "group": 16, "table": 4, "kl_ctc": 0}
NESTED["decoder_depths"] = [2, [1]]
IN_PARTS = {"letters": "abcdefghijklmnopqrstuvwxyz", "rare": 16}
IN_PARTS["common"] = "data/token_list/model/common_train.txt"
CODED = {**NESTED, "bits": [32, 6], "per": "tensor", "scale": "deviation"}
CODED |= {"step": {"encoder": 0.4, "decoder": 0.6}, "table": 2, "table_step": 0.8}
LARGE, SMALL, SIX = "2L-48+2L-40-32b", "2L-48+L1-40-4b", "2L-48+L1-40-6b"
VARIANTS = {"untrained": None, LARGE: "untrained", SMALL: LARGE}
CONFIGS = {
    "tuned": {"recipe": {"decode": {"ctc_att_beam": BEAM, "attention_beam": {"beam_size": 2}}}},
    "with_ctc": {
        "model_conf": {"ctc_weight": 0.3},
        "recipe": {"decode": {"ctc_att_beam": {**BEAM, "ctc_weight": 0.3}}},
    },
    "untrained": {"encoder_conf": {"pad_to": 30}, "max_epoch": 0},
    "many": {
        "max_epoch": 0,
        "encoder_conf": {"path": "downloads/many"},
        "decoder_conf": {"path": "downloads/many", "language": "fr", "task": "translate"},
    },
    "mimicked": {
        "init_param": ["exp/tuned/valid.acc.ave_1best.pth:decoder:decoder"],
        "encoder_conf": {
            "path": "exp/tuned/deploy/merged/stack",
            "mimic": {"kind": "transformer", "width": 24, "first": 1},
        },
        "recipe": {"mimic": {"epochs": 2}},
    },
    "kept": {
        "init_param": ["exp/tuned/valid.acc.ave_1best.pth:decoder:decoder"],
        "encoder_conf": {"path": "exp/tuned/deploy/merged/stack", "keep": [1]},
    },
    "replaced": {
        "max_epoch": 0,
        "encoder_conf": {"mimic": {"kind": "linear", "width": 24, "first": 0, "split": 1}},
    },
    "heard": {
        "max_epoch": 0,
        "encoder_conf": {"path": "downloads/many"},
        "decoder_conf": {"path": "downloads/many", "language": "detect"},
    },
    "streaming": {
        "encoder_conf": {"chunks": {"chunk_ms": 160, "history_ms": 320}},
        "recipe": {"decode": {"attention_greedy": {}, "attention_stream": {}}},
    },
    "shared": {
        "encoder_conf": {"residual": {"share": 2, "rank": 4}},
        "decoder_conf": {"residual": {"share": 2, "rank": 4}},
        "recipe": {"variant": "shared", "variants": {"untrained": None, "shared": "untrained"}},
    },
    "family": {
        "encoder_conf": {"nested": NESTED},
        "recipe": {"variant": SMALL, "variants": VARIANTS, "untrained": {"pad_to": 30}},
    },
    "coded": {
        "encoder_conf": {"nested": CODED},
        "recipe": {"variant": SIX, "huffman": True},
    },
    "table_in_parts": {
        "encoder_conf": {"nested": NESTED | IN_PARTS},
        "recipe": {"variant": SMALL},
    },
}
TAUGHT = {
    "include": ["../../../conf/base/asr_ctc.yaml", "../../../conf/encoders/conformer_xs.yaml"],
    "encoder_conf": {"num_blocks": 1, "input_layer": "conv2d"},
    "batch_type": "sorted",
    "batch_size": 4,
    "max_epoch": 1,
    "token_type": "char",
    "recipe": {"teacher": "exp/tuned", "average": 1, "decode": {"ctc_greedy": {}}},
}
SETS = {"train": 8, "dev": 3, "test": 4}


def audio(path, seconds, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(16000 * seconds))
    return write_flac(path, wave.astype(np.float32), 16000)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe after stage 3, with its model as transformers has it."""
    forked.load()
    root = tmp_path_factory.mktemp("foundation")
    folder = root / "egs/toy/asr1"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "egs/conf", root / "egs/conf")
    torch.manual_seed(3)
    model = foundation.make(folder / MODEL)
    foundation.make(folder / "downloads/many", multilingual=True)
    texts = ["river stone", "the pilot", "a lizard, a river", "the queen and the stone"]
    for name, count in SETS.items():
        rows = []
        for index in range(count):
            path = f"data/audio/{name}{index}.flac"
            seconds = audio(folder / path, 0.6 + 0.2 * (index % 4), index)
            rows.append(Utterance(f"{name}{index}", name, texts[index % 4], path, seconds))
        write_data_dir(folder / "data" / name, rows)
    seconds = audio(folder / "data/audio/long.flac", 63, 9)
    row = Utterance("long", "long", "the queen", "data/audio/long.flac", seconds)
    write_data_dir(folder / "data/hour", [row])
    (folder / "conf").mkdir()
    for tag, over in CONFIGS.items():
        content = merged(BASE, over)
        if tag == "untrained":
            del content["encoder_conf"]["masks"]
        if "ctc_att_beam" in content["recipe"]["decode"] and tag == "with_ctc":
            del content["recipe"]["decode"]["attention_greedy"]
        (folder / f"conf/train_{tag}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "conf/train_taught.yaml").write_text(yaml.safe_dump(TAUGHT, sort_keys=False))
    succeed(folder, "tokens", "conf/train_table_in_parts.yaml")
    return folder, model


def fail(folder, *words):
    """Run a verb that must fail; return what it says."""
    done = forked.Command(folder, words, folder.parent / "logs").wait(99)
    assert done.code == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stderr


def succeed(folder, *words):
    done = forked.Command(folder, words, folder.parent / "logs").wait(300)
    assert done.code == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_two_processes_train_a_family_as_one_with_the_whole_batch(recipe):
    folder, model = recipe
    over = {
        "encoder_conf": {"nested": NESTED, "masks": None},
        "optim": "sgd",
        "optim_conf": {"lr": 0.01},
        "grad_clip": 1000.0,
        "scheduler_conf": {"warmup_steps": 1},
    }
    found = []
    for processes in ("1", "2"):
        config = folder / f"conf/train_by_{processes}.yaml"
        config.write_text(yaml.safe_dump(merged(BASE, over), sort_keys=False))
        words = ("train", f"conf/{config.name}", "--threads", "1", "--processes", processes)
        logs = folder.parent / "logs"
        done = forked.Command(folder, words, logs, ranks.instead_of_torch).wait(300)
        assert done.code == 0, done.stdout[-2000:] + done.stderr[-2000:]
        path = folder / f"exp/by_{processes}/1epoch.pth"
        found.append(torch.load(path, weights_only=True))
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-5, atol=1e-5, msg=name)
    trained = found[0]["decoder.decoder.layer_norm.weight"]
    assert (trained - model.model.decoder.layer_norm.weight).abs().max() > 1e-3


def trained(folder, tag):
    config = f"conf/train_{tag}.yaml"
    succeed(folder, "train", config, "--threads", "1")
    succeed(folder, "deploy", config)
    return config


def decoder(deployed):
    from espnet_ext.bridge.decoding.decoder import Decoder
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    return Decoder(deployed, "attention_greedy", {"batch_size": 3}, SpeechInput(16000))


def hypotheses(folder, tag, method, name="test", variant="merged"):
    return read_table(folder / f"exp/{tag}/decode/{variant}/{method}/{name}/text")


def generated(model, folder, name):
    """Texts of a set by transformers' own generate, of speech padded to 30 s."""
    from transformers import GenerationMixin, WhisperFeatureExtractor

    words = foundation.tokenizer()
    start = model.config.decoder_start_token_id
    prompt = torch.tensor([[start, words.token_to_id("<|notimestamps|>")]])
    found = {}
    for utterance, path in read_table(folder / f"data/{name}/wav.scp").items():
        wave = read_wave(folder / path, utterance, 16000)
        mel = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
        made = GenerationMixin.generate(
            model,
            mel.input_features,
            decoder_input_ids=prompt,
            num_beams=1,
            do_sample=False,
            max_new_tokens=int(6 * len(wave) / 16000) + 8,
        )
        text = words.decode(made[0].tolist(), skip_special_tokens=True)
        found[utterance] = " ".join(text.split())
    return found


def test_an_untrained_model_is_decoded_as_transformers_does(recipe):
    folder, model = recipe
    config = trained(folder, "untrained")
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    found = hypotheses(folder, "untrained", "attention_greedy")
    assert found == generated(model, folder, "test")
    assert len(set(found.values())) > 1 and any(len(set(text)) > 4 for text in found.values())
    succeed(folder, "score", config, "--sets", "test")
    succeed(folder, "report", config)
    record = json.loads((folder / "exp/untrained/train.json").read_text())
    assert (record["epochs"], record["average"]["epochs"]) == (0, [0])
    assert record["command"].startswith("espnet-ext train")


def test_training_changes_encoder_and_decoder_and_both_searches_decode(recipe, monkeypatch):
    folder, model = recipe
    config = trained(folder, "tuned")
    state = torch.load(folder / "exp/tuned/deploy/merged/model.pth", weights_only=True)
    before = model.state_dict()
    for ours, theirs in {
        "encoder.stack.model.layers.0.fc1.weight": "model.encoder.layers.0.fc1.weight",
        "decoder.decoder.layers.1.encoder_attn.k_proj.weight": (
            "model.decoder.layers.1.encoder_attn.k_proj.weight"
        ),
        "decoder.decoder.embed_tokens.weight": "model.decoder.embed_tokens.weight",
    }.items():
        assert (state[ours] - before[theirs]).abs().max() > 1e-4, ours
    moved = folder / MODEL
    moved.rename(folder / "away")  # a deployed model needs no file of the pretrained one
    try:
        succeed(folder, "decode", config, "--sets", "test hour", "--nj", "1")
    finally:
        (folder / "away").rename(moved)
    for method in ("attention_greedy", "ctc_att_beam", "attention_beam"):
        assert hypotheses(folder, "tuned", method).keys() == {f"test{k}" for k in range(4)}
    found = hypotheses(folder, "tuned", "attention_greedy")
    monkeypatch.chdir(folder)
    alone = decoder(folder / "exp/tuned/deploy/merged")
    for utterance, path in read_table(folder / "data/test/wav.scp").items():
        wave = read_wave(folder / path, utterance, 16000)
        assert alone.texts([wave]) == [found[utterance]]
    whole = read_wave(folder / "data/audio/long.flac", "long", 16000)
    pieces = [alone.texts([piece])[0] for piece in cut_at_pauses(whole, 30 * 16000, 16000)]
    assert len(pieces) == 3
    assert hypotheses(folder, "tuned", "attention_greedy", "hour") == {"long": " ".join(pieces)}


def round_everything():
    """Also weights so small that files of 32 bits are as good, as those of a mimic are here."""
    from espnet_ext.bridge.deployed import variants

    variants.SMALL = 0


@pytest.mark.parametrize("tag", ["tuned", "mimicked"])
def test_the_whole_model_is_rounded_and_decodes(recipe, tag):
    folder, _ = recipe
    trained(folder, "tuned")
    config = trained(folder, tag)
    words = ("deploy", config, "--variant", "whole+4b")
    done = forked.Command(folder, words, folder.parent / "logs", round_everything).wait(300)
    assert done.code == 0, done.stderr[-2000:]
    deployed = folder / f"exp/{tag}/deploy"
    packed, plain = deployed / "whole+4b/model.safetensors", deployed / "merged/model.pth"
    state = torch.load(plain, weights_only=True)
    rounded = dequantised(read_member(packed))
    changed = sum(w.numel() for name, w in rounded.items() if not torch.equal(w, state[name]))
    # Of 32 bits 27.5 are saved: 4 are left, and half a bit of the scale.
    assert packed.stat().st_size < plain.stat().st_size - 3.4 * changed
    mimics = [name for name in state if ".mimic." in name and state[name].dim() > 1]
    assert bool(mimics) == (tag == "mimicked")
    (conv,) = [name for name in state if name.endswith(".conv1.weight")]
    for name in (conv, "decoder.decoder.embed_tokens.weight", *mimics):
        assert not torch.equal(rounded[name], state[name])
        assert (rounded[name] - state[name]).abs().max() < 0.1 * state[name].abs().max()
    assert torch.equal(  # positions are not rounded
        rounded["decoder.decoder.embed_positions.weight"],
        state["decoder.decoder.embed_positions.weight"],
    )
    succeed(folder, "decode", config, "--variant", "whole+4b", "--sets", "test", "--nj", "1")


def test_all_variants_of_a_family_go_through_all_stages(recipe):
    """Run as run.sh does: the verbs are given no variant."""
    folder, model = recipe
    config = trained(folder, "family")
    for verb in ("decode", "score"):
        succeed(folder, verb, config, "--sets", "test")
    printed = succeed(folder, "report", config)
    greedy = "attention_greedy"
    found = {variant: hypotheses(folder, "family", greedy, variant=variant) for variant in VARIANTS}
    assert found["untrained"] == generated(model, folder, "test")
    assert found[LARGE] != found["untrained"]
    deployed = folder / "exp/family/deploy"
    packed = deployed / SMALL / "model.safetensors"
    assert packed.stat().st_size < 0.3 * (deployed / LARGE / "model.pth").stat().st_size
    results = {}
    for variant, other in VARIANTS.items():
        name = "result.json" if variant == SMALL else f"result_{variant}.json"
        results[variant] = json.loads((folder / "exp/family" / name).read_text())
        (score,) = results[variant]["scores"]
        compared = {comparison["baseline"] for comparison in score["comparisons"]}
        assert compared == (set() if other is None else {f"family/{other}"})
    assert results["untrained"]["training"]["epochs"] == "not measured"
    assert results["untrained"]["checkpoint"] == "model.safetensors"
    assert results[SMALL]["training"]["epochs"] == 1
    assert printed.count("WER") >= 3
    again = succeed(folder, "deploy", config)
    assert again.count("is up to date") == 3
    only = succeed(folder, "deploy", config, "--variant", LARGE)
    assert only.count("is up to date") == 1


def transcribed(folder, *words):
    """Texts of the files of the test set by ``espnet-ext transcribe``."""
    files = [f"data/audio/test{k}.flac" for k in range(4)]
    lines = succeed(folder, "transcribe", *words, *files).splitlines()
    return [line.split("\t")[1] for line in lines]


def sherpa(folder):
    """The same by sherpa-onnx, which knows nothing of this project."""
    import sherpa_onnx

    graphs = {
        "preprocessor": "preprocess",
        "encoder": "encode",
        "uncached_decoder": "uncached_decode",
        "cached_decoder": "cached_decode",
    }
    tokens = {"tokens": str(folder / "tokens.txt"), "num_threads": 1}
    if (folder / "encoder.onnx").is_file():
        paths = {name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder")}
        recogniser = sherpa_onnx.OfflineRecognizer.from_whisper(**paths, **tokens)
    else:
        paths = {key: str(folder / f"{name}.onnx") for key, name in graphs.items()}
        recogniser = sherpa_onnx.OfflineRecognizer.from_moonshine(**paths, **tokens)
    found = []
    for k in range(4):
        stream = recogniser.create_stream()
        wave = read_wave(folder.parents[1] / f"data/audio/test{k}.flac", "x", 16000)
        stream.accept_waveform(16000, wave)
        recogniser.decode_stream(stream)
        found.append(" ".join(stream.result.text.split()))
    return found


NAMED = ["--layout", "from_whisper"]
EXPORTS = [[LARGE], [LARGE, "--bits", "8"], [SMALL], [SMALL, "--exact"], ["untrained"]]
EXPORTS += [[LARGE, "--exact", *NAMED], [SMALL, *NAMED]]
TAGGED = [*(("family", words) for words in EXPORTS), ("table_in_parts", [SMALL, "--exact"])]
TAGGED += [("coded", [SIX, "--exact"])]


@pytest.mark.parametrize(("tag", "words"), TAGGED)
def test_exported_graphs_find_torchs_texts_here_and_in_sherpa_onnx(recipe, tag, words):
    folder, _ = recipe
    config = trained(folder, tag)
    variant, *options = words
    deployed, out = f"exp/{tag}/deploy/{variant}", folder / f"onnx/{tag}_{'_'.join(words)}"
    printed = succeed(folder, "export", config, "--variant", variant, "--out", str(out), *options)
    assert re.search(r"; ([23]) of 3 texts are torch's", printed)  # the development set
    found = transcribed(folder, str(out))
    assert any(found)
    wanted = transcribed(folder, deployed)
    if options != ["--bits", "8"]:  # those weights are other ones
        assert sum(map(str.__eq__, found, wanted)) >= (4 if "--exact" in words else 3)
    if variant != "untrained":
        # A text of a model that never ends it: six tokens for 384 / 16000 s of each frame, which
        # are too many of speech that is filled up to 30 s.
        theirs = sherpa(out)
        assert len(set(theirs)) == 4
        # There sherpa-onnx computes features of its own, on which this small model says others.
        assert NAMED[1] in options or sum(map(str.startswith, found, theirs)) >= 3
    script = [sys.executable, str(out / "transcribe.py"), "data/audio/test1.flac"]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found[1]
    settings = json.loads((out / "model.json").read_text())
    counted = {int(bits): count for bits, count in settings["weights_in_bits"].items()}
    rounded = variant in (SMALL, SIX)
    if rounded:  # every integer of the packed file is in the graphs, in its bits
        packed = read_member(folder / deployed / "model.safetensors")
        stored = [w for w in packed.values() if isinstance(w, Quantised)]
        assert {w.bits for w in stored} == counted.keys()
        for bits, count in counted.items():
            assert count == sum(w.ints.numel() for w in stored if w.bits == bits)
    assert (counted == {}) == (not rounded and "--bits" not in words)


@pytest.mark.parametrize("seed", range(3))
def test_sherpa_onnx_finds_the_text_of_an_encoder_that_hears_nothing(recipe, seed, monkeypatch):
    """Whatever the features: tokens, prompt, caches and offsets of ``from_whisper`` are right."""
    folder, _ = recipe
    monkeypatch.chdir(folder)
    monkeypatch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)  # texts without an end
    trained(folder, "family")
    bundle = Bundle.of_folder(folder / f"exp/family/deploy/{LARGE}")
    generator = torch.Generator().manual_seed(seed)
    for name in ("weight", "bias"):
        one = bundle.state[f"encoder.stack.model.layer_norm.{name}"]
        one.copy_(3 * torch.randn(one.shape, generator=generator) if name == "bias" else one * 0)
    wave = read_wave("data/audio/test0.flac", "x", 16000)
    out = folder / f"onnx/deaf_{seed}"
    export(bundle, out, [wave], products="float32", layout="from_whisper")
    ours, theirs = espnet_ext.load(out)(wave, 16000).text, sherpa(out)
    # A text that has no end is longer of longer speech.
    assert all(text and (text.startswith(ours) or ours.startswith(text)) for text in theirs)
    assert len(ours) > 3 and len(max(theirs, key=len)) > 3


def test_a_translating_model_is_exported_with_its_prompt(recipe):
    folder, _ = recipe
    succeed(folder, "tokens", "conf/train_many.yaml")
    config = trained(folder, "many")
    printed = succeed(folder, "export", config, "--out", "onnx/many")
    assert "3 of 3 texts are torch's" in printed
    assert transcribed(folder, "onnx/many") == transcribed(folder, "exp/many/deploy/merged")


def test_a_family_in_one_folder_gives_the_texts_of_its_members(recipe):
    folder, _ = recipe
    config, out = trained(folder, "family"), folder / "onnx/together"
    printed = succeed(folder, "export", config, "--family", LARGE, SMALL, "--out", str(out))
    assert "to the last bit" in printed
    alone = {variant: folder / f"onnx/alone_{variant}" for variant in (LARGE, SMALL)}
    for variant, path in alone.items():
        succeed(folder, "export", config, "--variant", variant, "--out", str(path))
        texts = transcribed(folder, str(path))
        assert transcribed(folder, str(out), "--variant", variant) == texts != [""] * 4
    sizes = {name: bytes_of(path) for name, path in (("together", out), *alone.items())}
    assert sizes["together"] < sizes[LARGE] + sizes[SMALL]
    limit = str(sizes[SMALL])  # of the member in a folder of its own
    found = transcribed(folder, str(out), "--max-bytes", limit)
    assert found == transcribed(folder, str(alone[SMALL]))


@pytest.mark.parametrize("layout", [[], NAMED])
def test_a_beam_finds_in_exported_graphs_what_it_finds_in_torch(recipe, layout):
    folder, _ = recipe
    succeed(folder, "tokens", "conf/train_many.yaml")
    config, out = trained(folder, "many"), f"onnx/beam{len(layout)}"
    succeed(folder, "export", config, "--out", out, "--exact", *layout)
    deployed = transcribed(folder, "exp/many/deploy/merged", "--beam", "3")
    found = transcribed(folder, out, "--beam", "3")
    assert found == deployed != transcribed(folder, out)
    script = [sys.executable, f"{out}/transcribe.py", "--beam", "3", "data/audio/test1.flac"]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found[1]


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("tag", ["kept", "mimicked", "replaced", "streaming"])
def test_fewer_layers_mimics_and_attention_within_chunks_are_exported(recipe, tag):
    folder, _ = recipe
    trained(folder, "tuned")
    config, out = trained(folder, tag), folder / f"onnx/{tag}"
    if tag == "kept":  # one layer of two is left
        state = torch.load(folder / f"exp/{tag}/deploy/merged/model.pth", weights_only=True)
        encoder = [name for name in state if name.startswith("encoder.stack.model.layers.")]
        assert {name.split(".")[4] for name in encoder} == {"0"}
    printed = succeed(folder, "export", config, "--out", str(out))
    assert "3 of 3 texts are torch's" in printed
    found = transcribed(folder, str(out))
    assert found == transcribed(folder, f"exp/{tag}/deploy/merged")
    theirs = sherpa(out)
    assert sum(map(str.startswith, found, theirs)) >= 3
    assert all(theirs)
    again = succeed(folder, "export", config, "--out", str(out), "--bits", "8", "--exact")
    assert "of 8 bits" in again


@pytest.mark.parametrize("mimic", [None, {"kind": "linear", "width": 24, "first": 1}])
def test_an_encoder_under_ctc_is_exported(recipe, mimic):
    folder, _ = recipe
    tag = "ctc_mimic" if mimic else "ctc"
    conf = {
        "include": "../../../conf/base/stack_ctc.yaml",
        "encoder_conf": {"path": MODEL, "frozen": mimic is not None, "mimic": mimic},
        "token_type": "char",
        "batch_type": "sorted",
        "batch_size": 4,
        "max_epoch": 0,
        "optim_conf": {"lr": 0.003},
        "scheduler_conf": {"warmup_steps": 2},
        "recipe": {"average": 1},
    }
    path = folder / f"conf/train_{tag}.yaml"
    path.write_text(yaml.safe_dump(conf))
    succeed(folder, "tokens", str(path))
    config = trained(folder, tag)
    for options in ((), ("--bits", "8", "--exact")):
        said = succeed(folder, "export", config, "--out", f"onnx/{tag}", *options)
        assert ("of 8 bits" if options else "3 of 3 texts are torch's") in said
    succeed(folder, "export", config, "--out", f"onnx/{tag}")
    found = transcribed(folder, f"onnx/{tag}")
    assert found == transcribed(folder, f"exp/{tag}/deploy/merged") != [""] * 4


def test_a_model_that_detects_languages_is_exported_for_one(recipe):
    folder, _ = recipe
    succeed(folder, "tokens", "conf/train_heard.yaml")
    config = trained(folder, "heard")
    wave, scores = read_wave(folder / "data/audio/test1.flac", "x", 16000), {}
    for language in ("en", "fr"):  # the graphs have that prompt: other scores
        words = ("export", config, "--out", "onnx/heard", "--language", language)
        assert "3 of 3 texts are torch's" in succeed(folder, *words)
        settings = json.loads((folder / "onnx/heard/model.json").read_text())
        tokens = ["startoftranscript", language, "transcribe", "notimestamps"]
        assert settings["prompt"] == [f"<|{token}|>" for token in tokens]
        graphs = run_onnx.Model(folder / "onnx/heard")
        scores[language] = next_scores(graphs, wave)(run_onnx.PROMPT)
    assert not np.allclose(scores["en"], scores["fr"], atol=1e-3)


def test_graphs_detect_the_language_of_each_file(recipe):
    folder, _ = recipe
    succeed(folder, "tokens", "conf/train_heard.yaml")
    config, out = trained(folder, "heard"), folder / "onnx/each"
    printed = succeed(folder, "export", config, "--out", str(out))
    assert "3 of 3 texts are torch's" in printed
    found = transcribed(folder, str(out))
    assert found == transcribed(folder, "exp/heard/deploy/merged")
    theirs = sherpa(out)  # it ends a text earlier
    assert sum(map(str.startswith, found, theirs)) >= 3 and all(theirs)
    settings = json.loads((out / "model.json").read_text())
    assert settings["languages"] == ["en", "fr"] and settings["prompt"][1] == "<|language|>"
    graphs = run_onnx.Model(out)
    texts = settings["first_language"]
    for number in range(3):
        wave = read_wave(folder / f"data/audio/test{number}.flac", "x", 16000)
        step = next_scores(graphs, wave)
        first = step(run_onnx.PROMPT)
        assert len(first) == texts + 2 and first.argmax() >= texts > step(texts).argmax()


def test_what_cannot_be_exported_or_was_changed_is_one_line(recipe):
    folder, _ = recipe
    config = trained(folder, "family")
    model = f"exp/family/deploy/{SMALL}"

    def refused(*words):
        done = forked.Command(folder, words, folder.parent / "logs").wait(300)
        assert done.code == 1, done.stdout
        (line,) = done.stderr.strip().splitlines()
        return line

    audio = "data/audio/test0.flac"
    verify = ("--verify", audio)
    assert "--verify" in refused("export", model, "--out", "onnx/x")
    assert "leave out --bits" in refused("export", model, "--out", "onnx/x", "--bits", "8", *verify)
    assert "choose another folder" in refused("export", model, "--out", "data", *verify)
    tuned = trained(folder, "tuned")
    assert "detects no language" in refused("export", tuned, "--out", "onnx/x", "--language", "en")
    succeed(folder, "tokens", "conf/train_heard.yaml")
    heard = trained(folder, "heard")
    assert "lacks the language" in refused("export", heard, "--out", "onnx/x", "--language", "xx")
    assert not (folder / "onnx/x").exists()
    succeed(folder, "export", config, "--out", "onnx/good")
    whole = (folder / "onnx/good/encode.onnx").read_bytes()
    for content in (whole[:-9], whole[:-9] + b"tampered!"):
        (folder / "onnx/good/encode.onnx").write_bytes(content)
        assert "encode.onnx was changed" in refused("transcribe", "onnx/good", audio)
    (folder / "onnx/good/encode.onnx").unlink()
    assert "no onnx/good/encode.onnx" in refused("transcribe", "onnx/good", audio)
    (folder / "onnx/good/model.json").write_text("[]")
    assert "not the settings" in refused("transcribe", "onnx/good", audio)
    (folder / "empty.wav").write_bytes(b"")
    assert "empty.wav" in refused("transcribe", model, "empty.wav")
    assert "known" in refused("transcribe", model, audio, "--method", "beam")
    words = ("transcribe", "exp/family/deploy", audio, "--max-rtf", "1e-9")
    assert "no model has a real-time factor of 1e-09" in refused(*words)
    assert "is no exported model" in refused("export", config, "--out", "onnx/good")
    succeed(folder, "export", config, "--out", "onnx/again", "--verify", audio)
    assert "does not stream" in refused("transcribe", "onnx/again", audio, "--stream")
    assert "of deployed models" in refused("transcribe", "onnx/again", audio, "--device", "cuda")


def test_the_benchmark_compares_exported_and_deployed_models(recipe):
    folder, _ = recipe
    config = trained(folder, "family")
    succeed(folder, "export", config, "--variant", LARGE, "--out", "onnx/timed")
    systems = ["onnx:onnx/timed", "sherpa:onnx/timed", f"torch:exp/family/deploy/{LARGE}"]
    program = [sys.executable, str(ROOT / "benchmarks/device.py"), "data/train", *systems]
    words = [*program, "--utterances", "8", "--json", "device.json"]
    subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    found = json.loads((folder / "device.json").read_text())
    rows = {row[0]: row for row in found["rows"]}
    assert rows.keys() == {"onnx", "sherpa", "torch"} and rows["onnx"][3] == "1.00"
    one, _, other = found["measured"]["systems"]
    assert other["same_texts"] == len(one["times"]) == 8 and "texts" not in one
    assert one["bytes"] == sum(p.stat().st_size for p in (folder / "onnx/timed").glob("*.onnx"))
    assert min(one["times"]) > 0 and one["memory_mb"] > 0 and one["load"] > 0
    done = subprocess.run([*program[:3], "oops:x"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "unknown kind oops" in done.stderr


def test_partial_texts_of_a_stream_come_from_a_folder_alone(recipe):
    folder, _ = recipe
    trained(folder, "streaming")
    away = folder.parent / "moved"
    shutil.copytree(folder / "exp/streaming/deploy/merged", away)
    words = (str(away), "data/audio/test3.flac", "--stream", "--json")
    lines = [json.loads(line) for line in succeed(folder, "transcribe", *words).splitlines()]
    assert lines[-1]["finished"] and lines[-1]["text"]
    (text,) = [line["text"] for line in lines if line["finished"]]
    assert text == transcribed(folder, str(away))[3]


def test_a_decoder_follows_a_mimic_of_the_fine_tuned_encoder(recipe):
    folder, _ = recipe
    trained(folder, "tuned")
    config = trained(folder, "mimicked")
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    assert hypotheses(folder, "mimicked", "attention_greedy").keys() == {
        f"test{k}" for k in range(4)
    }
    weights = [
        torch.load(folder / f"exp/{tag}/deploy/merged/model.pth", weights_only=True)
        for tag in ("tuned", "mimicked")
    ]
    assert any("mimic" in name for name in weights[1])
    # Adam moves a weight by some lr a step: it started at the decoder that was fine-tuned.
    name = "decoder.decoder.layers.0.fc1.weight"
    assert 0 < (weights[0][name] - weights[1][name]).abs().max() < 0.02


def test_a_recogniser_whose_layers_share_weights_starts_from_the_pretrained_one(recipe):
    folder, _ = recipe
    config = trained(folder, "shared")
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    succeed(folder, "score", config, "--sets", "test")
    deployed = folder / "exp/shared/deploy"
    sizes = [(deployed / one / "model.pth").stat().st_size for one in ("shared", "untrained")]
    assert sizes[0] < sizes[1]
    exported = {}
    for variant, bits in (("shared", 32), ("untrained", 32), ("shared", 4)):
        where = folder / f"exp/onnx_{variant}_{bits}"
        words = ["--variant", variant, "--bits", str(bits), "--exact", "--out", str(where)]
        assert "3 of 3 texts are torch's" in succeed(folder, "export", config, *words)
        graphs = [onnx.load(where / f"{name}.onnx").graph for name in ("encode", "cached_decode")]
        stored = [one for graph in graphs for one in graph.initializer]
        exported[variant, bits] = sum(len(one.raw_data) for one in stored)
    # Every base is there once: as many numbers are saved as in the files of the variants.
    tensors = [
        torch.load(deployed / variant / "model.pth", weights_only=True)
        for variant in ("untrained", "shared")
    ]
    plain, shared = (sum(t.nbytes for t in one.values()) for one in tensors)
    saved = exported["untrained", 32] - exported["shared", 32]
    assert plain - shared > 30000
    assert saved == pytest.approx(plain - shared, rel=0.01)
    assert exported["shared", 4] < 0.9 * exported["shared", 32]


def test_a_model_with_chunks_streams_in_two_passes(recipe):
    folder, _ = recipe
    config = trained(folder, "streaming")
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    passes = [hypotheses(folder, "streaming", f"attention_{m}") for m in ("greedy", "stream")]
    assert passes[0].keys() == passes[1].keys() and any(passes[1].values())
    # One utterance, then a pause, then another: two segments, each with its second pass.
    waves = [read_wave(folder / f"data/audio/test{k}.flac", "x", 16000) for k in (2, 3)]
    waves = [np.pad(np.tile(wave, 2), (0, -len(2 * wave) % 2560)) for wave in waves]
    pause = np.zeros(16000, np.float32)
    joined = np.concatenate([waves[0], pause, waves[1], pause])
    write_flac(folder / "stream.flac", joined, 16000)
    printed = succeed(folder, "stream", config, "stream.flac", "--json", "stream.json")
    finished = [line for line in printed.splitlines() if " s | " in line]
    figures = json.loads((folder / "stream.json").read_text())
    assert figures["text"] == " ".join(line.split(" s | ")[1] for line in finished)
    assert len(finished) == 2 and figures["method"] == "attention_greedy"
    assert figures["audio_seconds"] == pytest.approx(len(joined) / 16000, abs=1e-3)
    assert figures["chunks"] == -(-len(joined) // 2560)
    write_flac(folder / "silence.flac", 1e-4 * joined, 16000)
    printed = succeed(folder, "stream", config, "silence.flac")
    assert " s | " not in printed
    soundfile.write(folder / "empty.wav", joined[:0], 16000)
    assert "the stream has 0.000 s, less than a window" in fail(
        folder, "stream", config, "empty.wav"
    )
    spoken = ("transcribe", "exp/streaming/deploy/merged", "stream.flac", "--stream")
    assert "leave out --device and --max-rtf" in fail(folder, *spoken, "--max-rtf", "0.5")


def test_a_small_model_learns_from_the_fine_tuned_encoder(recipe):
    folder, _ = recipe
    trained(folder, "tuned")
    succeed(folder, "tokens", "conf/train_taught.yaml")
    config = trained(folder, "taught")
    assert "loss_teacher" in (folder / "exp/taught/train.log").read_text()
    deployed = folder / "exp/taught/deploy/merged"
    names = torch.load(deployed / "model.pth", weights_only=True)
    assert not any("teacher" in name for name in names)
    assert "teacher" not in (deployed / "config.yaml").read_text()
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    (folder / "conf/train_none.yaml").write_text(
        yaml.safe_dump(merged(TAUGHT, {"recipe": {"teacher": "exp/none"}}))
    )
    said = fail(folder, "train", "conf/train_none.yaml")
    assert "recipe: teacher: no model in exp/none" in said


def test_layers_are_pruned_with_the_decoder_behind_them(recipe):
    folder, _ = recipe
    trained(folder, "tuned")
    sets = ("--score_set", "dev", "--set", "test")
    words = ("prune", "conf/train_tuned.yaml", *sets, "--repeats", "1", "--k", "2")
    printed = succeed(folder, *words, "--orders", "backward", "forward")
    assert "WER" in printed and "Whole stack" in printed and "chance" not in printed
    record = json.loads((folder / "exp/pruning/tuned_test.json").read_text())
    assert record["metric"] == "wer" and record["classes"] == [] and record["chance"] is None
    # The whole stack scores as stage 7 does.
    succeed(folder, "decode", "conf/train_tuned.yaml", "--sets", "test", "--nj", "1")
    succeed(folder, "score", "conf/train_tuned.yaml", "--sets", "test")
    scores = json.loads((folder / "exp/tuned/score/merged/attention_greedy/test.json").read_text())
    assert record["full"] == pytest.approx(scores["score"]["metrics"]["wer"]["value"])
    backward = record["orders"][0]
    assert backward["sequences"] == [[1]] and len(backward["points"]) == 2
    assert backward["points"][0]["parameters"] > backward["points"][1]["parameters"]
    refused = forked.Command(folder, (*words, "--metric", "accuracy"), folder.parent / "logs")
    done = refused.wait(300)
    assert done.code == 1 and "--metric accuracy does not fit task asr: choose wer" in done.stderr


def test_the_layers_of_the_decoder_are_compared_and_pruned(recipe, monkeypatch):
    from espnet_ext.analysis.layers import layers_of, load_recogniser

    folder, _ = recipe
    config = trained(folder, "tuned")
    succeed(folder, "similarity", config, "--part", "decoder", "--set", "test", "--k", "2")
    record = json.loads((folder / "exp/similarity/tuned_test_decoder.json").read_text())
    assert record["model"]["family"] == "whisper decoder" and len(record["cosine"]) == 2
    sets = ("--score_set", "dev", "--set", "test")
    succeed(folder, "prune", config, "--part", "decoder", *sets, "--repeats", "1", "--k", "2")
    pruned = json.loads((folder / "exp/pruning/tuned_test_decoder.json").read_text())
    assert [order["sequences"] for order in pruned["orders"]] == [[[1]]] * 4
    # The outputs are those of transformers' own decoder.
    monkeypatch.chdir(folder)
    deployed = Path("exp/tuned/deploy/merged")
    recogniser = load_recogniser(deployed, "attention_greedy", {}, "decoder")
    texts = {"a": "one two", "b": "three"}
    layers, outputs = layers_of(recogniser, "decoder", texts)
    waves = [torch.randn(16000), torch.randn(24000)]
    found = outputs(["a", "b"], waves)
    model = recogniser.model
    for place, name in enumerate(("a", "b")):
        words = recogniser.inference.tokenizer.text2tokens(texts[name])
        tokens = [*model.decoder.prompt, *recogniser.inference.converter.tokens2ids(words)]
        encoded, _ = model.encode(waves[place][None], torch.tensor([len(waves[place])]))
        plain = model.decoder.decoder(
            input_ids=torch.tensor([tokens]),
            encoder_hidden_states=encoded,
            output_hidden_states=True,
        ).hidden_states[1:]
        for layer, (mine, theirs) in enumerate(zip(found, plain, strict=True)):
            wanted = theirs[0, len(model.decoder.prompt) - 1 :]
            torch.testing.assert_close(mine[place], wanted, atol=2e-5, rtol=1e-4, msg=str(layer))
    smaller = layers.remove([0])
    assert smaller.kept == (1,) and smaller.layers[0] is layers.layers[1]
    with pytest.raises(UserError, match="no layer 7 in this whisper decoder stack"):
        layers.remove([7])


def test_ctc_and_attention_train_and_decode_together(recipe):
    folder, _ = recipe
    config = trained(folder, "with_ctc")
    succeed(folder, "decode", config, "--sets", "test", "--nj", "1")
    assert len(hypotheses(folder, "with_ctc", "ctc_att_beam")) == 4
    log = (folder / "exp/with_ctc/train.log").read_text()
    assert "loss_ctc" in log and "loss_att" in log

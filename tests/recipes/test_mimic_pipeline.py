"""Both steps of a mimic on miniature recipes: a classifier and a CTC recogniser, as a user runs."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from tests.fixtures import forked, miniature
from tests.fixtures.acted_voices import hedgewars

SMALL = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 80,
}
PROBE = {
    "include": "train_mimic_whisper_tiny_s.yaml",
    "encoder_conf": {
        "path": "model",
        "architecture": SMALL,
        "mimic": {"kind": "transformer", "width": 12, "split": 2, "heads": 2},
    },
    "batch_bins": 16000 * 6,
    "max_epoch": 2,
    "recipe": {"average": 1, "fetch": None, "baseline": None, "mimic": {"epochs": 3}},
}


def tree(root, dataset, task):
    """Copy what a recipe and its configs need, configs of its sister recipes too."""
    others = [
        path.relative_to(miniature.ROOT) for path in miniature.ROOT.glob(f"egs/{dataset}/*/conf")
    ]
    for name in ("egs/conf", f"egs/{dataset}/{task}/local", *others):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(miniature.ROOT / name, root / name, ignore=ignored, dirs_exist_ok=True)
    return root / "egs" / dataset / task


def write(recipe, tag, content):
    (recipe / f"conf/train_{tag}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return f"conf/train_{tag}.yaml"


def save_model(folder):
    """A Whisper encoder of random weights, as transformers writes it."""
    from espnet_ext.encoders.pretrained.load import build_stack

    torch.manual_seed(77)  # not the seed of a config
    build_stack(SMALL).save(folder)


def run(recipe, *words, timeout=300):
    return forked.Command(recipe, words, recipe / "logs").wait(timeout)


def succeed(recipe, *words):
    done = run(recipe, *words)
    assert done.code == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """The probing recipe after stage 3."""
    forked.load()
    root = tmp_path_factory.mktemp("probe")
    recipe = tree(root / "tree", "hedgewars", "probe1")
    words = hedgewars(root, _decodable(root))
    command = [sys.executable, "local/data.py", "--nj", "1", *words]
    subprocess.run(
        [str(w) for w in command],
        cwd=recipe,
        env={"PYTHONPATH": str(miniature.ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    save_model(recipe / "model")
    for tag in ("tiny_s", "again_s"):
        write(recipe, tag, PROBE)
    assert "7 classes" in succeed(recipe, "tokens", "conf/train_tiny_s.yaml")
    return recipe


def _decodable(root):
    from tests.fixtures.acted_voices import wave

    clips = [wave(root / f"{n}.ogg", 0.3, 44100, 1, 800 + 90 * n).read_bytes() for n in (1, 2)]
    return {"British/Melon.ogg": clips[0], "Pirate/Melon.ogg": clips[1]}


@pytest.fixture
def here(probe, tmp_path, monkeypatch):
    """A copy of the recipe, the working folder of the test."""
    shutil.copytree(probe, tmp_path / "recipe")
    # Includes of its configs are resolved where they were.
    for path in (tmp_path / "recipe/conf").glob("train_*_s.yaml"):
        whole = load_config(probe / "conf" / path.name)
        content = {**whole.espnet, "recipe": whole.as_dict()["recipe"]}
        path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path / "recipe")
    return tmp_path / "recipe"


def step_one(**over):
    """Run step one of the miniature config with other settings; return its folder."""
    from espnet_ext.analysis import mimic_training

    return mimic_training.train_mimic(config(**over)).parent


def config(**over):
    path = "conf/train_tiny_s.yaml"
    content = yaml.safe_load(Path(path).read_text())
    content["recipe"]["mimic"] = {"epochs": 3, **over}
    Path(path).write_text(yaml.safe_dump(content))
    return Experiment.load(path)


# Step one -------------------------------------------------------------------------------------


def test_step_one_learns_the_teachers_layers(here):
    from espnet_ext.data.audio import read_wave
    from espnet_ext.encoders.pretrained.load import load_stack
    from espnet_ext.methods.mimic import MimicNetwork, MimicOptions, masked_mse

    folder = step_one(epochs=30, lr=0.01)
    record = json.loads((folder / "mimic.json").read_text())
    assert len(record["train"]) == 30
    assert record["train"][-1] < 0.5 * record["train"][0]
    assert record["cached"] == [True, True]
    assert not (folder / "checkpoint.pth").exists()
    # The error that was written down is that of the weights, against the layers themselves.
    options = MimicOptions(kind="transformer", width=12, split=2, heads=2)
    network = MimicNetwork(16, 3, options).eval()
    network.load_state_dict(load_file(folder / "mimic.safetensors"))
    stack, total, frames = load_stack("model"), 0.0, 0
    for line in Path("data/dev/wav.scp").read_text().splitlines():
        name, path = line.split()
        wave = torch.from_numpy(read_wave(path, name, 16000)).unsqueeze(0)
        with torch.no_grad():
            x, lengths = stack.front(wave, torch.tensor([wave.shape[1]]))
            layers = stack.hidden(x, lengths)
            found = network(x, lengths)
        error = masked_mse(found[0], layers[1], lengths) + masked_mse(found[1], layers[2], lengths)
        total += float(error) * int(lengths)
        frames += int(lengths)
    assert min(record["valid"]) == pytest.approx(total / frames, rel=1e-4)


def test_cached_and_recomputed_activations_give_the_same(here, capsys):
    first = json.loads((step_one() / "mimic.json").read_text())
    shutil.rmtree("exp")
    second = json.loads((step_one(cache_gb=0) / "mimic.json").read_text())
    assert second["cached"] == [False, False]
    assert not list(here.rglob("*.float32"))
    shutil.rmtree("exp")
    capsys.readouterr()
    third = json.loads((step_one(cache_gb=1e-6) / "mimic.json").read_text())
    assert "more than cache_gb: 1e-06; they are computed every epoch" in capsys.readouterr().out
    for key in ("train", "valid"):
        assert second[key] == pytest.approx(first[key], rel=1e-4)
        assert third[key] == second[key]


def test_the_cache_is_shared_checked_and_mended(here, capsys):
    step_one()
    made = sorted(here.rglob("*.float32"))
    assert len(made) == 2 * 3  # two sets; what the mimics see, layer 2, layer 3
    times = [p.stat().st_mtime_ns for p in made]
    capsys.readouterr()
    step_one(lr=0.002)  # another step one of the same teacher
    assert [p.stat().st_mtime_ns for p in made] == times
    content = made[0].read_bytes()
    made[0].write_bytes(content[:-4] + b"\0\0\0\0")
    step_one(lr=0.003)
    assert made[0].read_bytes() == content


def test_a_killed_step_one_goes_on_to_the_same_result(here, capsys):
    whole = step_one(epochs=4)
    expected = (whole / "mimic.safetensors").read_bytes()
    errors = json.loads((whole / "mimic.json").read_text())["valid"]
    shutil.rmtree("exp")
    command = forked.Command(here, ("mimic", "conf/train_tiny_s.yaml"), here / "logs")
    while "epoch 2/4" not in command.paths[0].read_text() and not command.ended():
        time.sleep(0.01)
    command.kill()
    command.wait()
    assert not (whole / "mimic.safetensors").exists()
    capsys.readouterr()
    again = step_one(epochs=4)
    assert again == whole
    assert "continuing after epoch" in capsys.readouterr().out
    assert (again / "mimic.safetensors").read_bytes() == expected
    assert json.loads((again / "mimic.json").read_text())["valid"] == errors
    capsys.readouterr()
    step_one(epochs=4)
    assert "up to date" in capsys.readouterr().out


def test_faults_of_step_one(here):
    from espnet_ext.analysis import mimic_training

    with pytest.raises(UserError, match="recipe: mimic: unknown key 'epoch'; did you mean"):
        config(epoch=3)
    with pytest.raises(UserError, match="recipe: mimic: lr must be a number above 0"):
        config(lr=0)
    with pytest.raises(UserError, match="epochs must be a whole number of at least 1"):
        config(epochs=0)
    with pytest.raises(UserError, match="cache_gb must be a number of at least 0"):
        config(cache_gb=-1)
    with pytest.raises(UserError, match=r"error of epoch . is not finite; use a lower"):
        mimic_training.train_mimic(config(lr=1e30))
    good = config()
    content = yaml.safe_load(good.config.path.read_text())
    for change, message in (
        ({"mimic": None}, "is step one of encoder_conf: mimic"),
        ({"path": None}, "give encoder_conf: path"),
    ):
        other = {**content, "encoder_conf": {**content["encoder_conf"], **change}}
        path = write(here, "other_s", other)
        with pytest.raises(UserError, match=message):
            Experiment.load(path)
    path = write(here, "other_s", {**content, "recipe": {**content["recipe"], "fetch": "whisper"}})
    with pytest.raises(UserError, match="recipe: fetch: unknown model 'whisper'"):
        Experiment.load(path)
    Path("no_sound.flac").write_bytes(b"no sound")
    scp = Path("data", good.sets[0], "wav.scp")
    first, *rows = scp.read_text().splitlines()
    utterance = first.split()[0]
    rows = [f"{utterance} no_sound.flac", *rows]
    scp.write_text("".join(f"{row}\n" for row in rows))
    with pytest.raises(UserError, match=rf"{utterance}: cannot decode no_sound\.flac"):
        mimic_training.train_mimic(config())
    (here / "model").rename(here / "elsewhere")
    with pytest.raises(UserError, match="no pretrained model model; give the path"):
        mimic_training.train_mimic(config())
    (here / "elsewhere").rename(here / "model")
    wav = here / "data/dev/wav.scp"
    wav.unlink()
    with pytest.raises(UserError, match=r"no data/dev/wav.scp; run stage 1"):
        mimic_training.train_mimic(config())


# Both steps -----------------------------------------------------------------------------------


def test_a_probe_with_a_mimic_goes_through_all_stages(probe):
    said = succeed(probe, "train", "conf/train_tiny_s.yaml")
    assert "mimic: epoch 3/3" in said
    assert "up to date" in succeed(probe, "train", "conf/train_tiny_s.yaml")
    # Another step two of the same step one.
    content = PROBE | {"encoder_conf": PROBE["encoder_conf"] | {"frozen": False}}
    write(probe, "again_s", content)
    said = succeed(probe, "train", "conf/train_again_s.yaml")
    assert re.search(r"mimic: exp/mimic/\S+ is up to date", said)
    assert "largest difference" in succeed(probe, "deploy", "conf/train_tiny_s.yaml")
    made = json.loads((probe / "exp/tiny_s/deploy/merged/deploy.json").read_text())
    size, width = 16, 12
    layer = 4 * (size * size + size) + 2 * size * width + size + width + 4 * size
    assert made["parameters"]["encoder_stack"] == 2 * layer
    assert made["verified"]["max_difference"] <= 1e-5
    # What was deployed needs neither the model it came from nor step one.
    for name in ("model", "exp/mimic"):
        (probe / name).rename(probe / f"{name}_moved")
    try:
        for verb in ("decode", "score"):
            succeed(probe, verb, "conf/train_tiny_s.yaml", "--sets", "test")
    finally:
        for name in ("model", "exp/mimic"):
            (probe / f"{name}_moved").rename(probe / name)
    succeed(probe, "report", "conf/train_tiny_s.yaml")
    refused = run(probe, "prune", "conf/train_tiny_s.yaml", "--set", "test", "--k", "2")
    assert refused.code == 1
    assert "a mimic replaced its layers" in refused.stderr
    result = json.loads((probe / "exp/tiny_s/result.json").read_text())
    assert result["parameters"]["encoder_stack"] == 2 * layer
    assert result["macs_per_second"] > 0


def test_what_step_two_trains_is_what_the_config_says(probe):
    def weights(tag):
        return torch.load(probe / f"exp/{tag}/1epoch.pth", weights_only=True)

    start = load_file(next((probe / "exp/mimic").glob("*/mimic.safetensors")))
    for tag, mimic, front in (("frozen_s", False, False), ("every_s", True, True)):
        conf = PROBE["encoder_conf"]
        conf = conf | {"frozen": tag == "frozen_s"}
        conf["mimic"] = conf["mimic"] | {"frozen": not mimic}
        config = write(probe, tag, PROBE | {"max_epoch": 1, "encoder_conf": conf})
        succeed(probe, "train", config)
        found = weights(tag)
        changed = [
            name
            for name, old in start.items()
            if not torch.equal(found[f"encoder.stack.mimic.{name}"], old)
        ]
        assert (len(changed) == len(start)) if mimic else not changed
        model = load_file(probe / "model/model.safetensors")
        same = torch.equal(
            found["encoder.stack.stack.model.conv1.weight"], model["encoder.conv1.weight"]
        )
        assert same != front


def test_controls_start_where_they_say(probe):
    """No step one: the mimic is random. From scratch: the front end too."""
    recipe = PROBE["recipe"] | {"mimic": None}
    over = {"recipe": recipe, "max_epoch": 1, "optim_conf": {"lr": 0.0}}
    succeed(probe, "train", write(probe, "random_s", PROBE | over))
    conf = PROBE["encoder_conf"] | {"path": None, "frozen": False}
    config = write(probe, "scratch_s", PROBE | over | {"encoder_conf": conf})
    succeed(probe, "train", config)
    model = load_file(probe / "model/model.safetensors")
    name = "encoder.stack.stack.model.conv1.weight"
    random, scratch = (
        torch.load(probe / f"exp/{tag}/1epoch.pth", weights_only=True)
        for tag in ("random_s", "scratch_s")
    )
    assert torch.equal(random[name], model["encoder.conv1.weight"])
    assert not torch.equal(scratch[name], model["encoder.conv1.weight"])
    assert {k: v.shape for k, v in random.items()} == {k: v.shape for k, v in scratch.items()}


def test_keywords_have_a_list_of_classes_of_their_own(probe):
    content = PROBE | {
        "include": "train_keyword_mimic_whisper_tiny_s.yaml",
        "recipe": PROBE["recipe"] | {"classes": 16},
    }
    path = write(probe, "keyword_s", content)
    assert "16 classes in data/token_list/keyword" in succeed(probe, "tokens", path)
    assert (probe / "data/token_list/label/tokens.txt").is_file()
    grid = {
        "sets": "keyword_",
        "seeds": [1],
        "systems": {"mimic": {"config": "train_keyword_s.yaml", "set": {"max_epoch": 1}}},
    }
    (probe / "conf/grid_words.yaml").write_text(yaml.safe_dump(grid))
    said = succeed(probe, "grid", "conf/grid_words.yaml", "--nj", "1")
    assert "| mimic" in said
    record = json.loads((probe / "exp/grid_words/grid.json").read_text())
    assert record["decisions"] == 16
    (system,) = record["systems"]
    assert 0 < system["stack_parameters"] < system["parameters"]
    assert "of the stack" in said


def test_a_recogniser_with_a_mimic_is_fine_tuned_and_decoded(tmp_path_factory):
    forked.load()
    root = tmp_path_factory.mktemp("asr")
    recipe = miniature.make_with_data(root)
    tree(root / "tree", "fotaq", "asr1")
    save_model(recipe / "model")
    for tag, original in (("whole_s", "whisper_tiny_s"), ("part_s", "mimic_whisper_tiny_s")):
        content = {
            "include": f"train_{original}.yaml",
            "encoder_conf": {"path": "model", "architecture": SMALL},
            "max_epoch": 1,
            "recipe": {"average": 1, "fetch": None, "vocabulary": 24},
        }
        if tag == "part_s":
            content["encoder_conf"]["mimic"] = {"width": 12}
            content["recipe"] |= {"mimic": {"epochs": 2}, "baseline": "whole_s"}
        config = write(recipe, tag, content)
        for verb in ("tokens", "train", "deploy"):
            succeed(recipe, verb, config)
        for verb in ("decode", "score"):
            succeed(recipe, verb, config, "--sets", "test")
    found = json.loads((recipe / "exp/part_s/score/merged/ctc_greedy/test.json").read_text())
    assert found["score"]["comparisons"][0]["baseline"] == "whole_s"
    sizes = [
        json.loads((recipe / f"exp/{tag}/deploy/merged/deploy.json").read_text())["parameters"]
        for tag in ("whole_s", "part_s")
    ]
    # Two of three layers are kept, and no final norm.
    assert sizes[1]["encoder_stack"] < sizes[0]["encoder_stack"]
    assert sizes[1]["encoder_blocks"] > 2 * (sizes[0]["encoder_blocks"] // 3)

"""Bad data, checkpoints and trainings: one line, a non-zero exit, nothing lost."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.fixtures import forked
from tests.fixtures.finished import AVERAGE, DEPLOYED, VERBS, change, complains


def one_audio(folder: Path, name: str) -> Path:
    """The audio of the first utterance of a set."""
    return folder / (folder / "data" / name / "wav.scp").read_text().split()[1]


def spoil(path: Path, how: str) -> None:
    """Spoil an audio file."""
    samples, rate = soundfile.read(path, dtype="int16")
    if how == "rate":
        soundfile.write(path, samples, rate // 2)
    elif how == "channels":
        soundfile.write(path, np.stack([samples, samples], axis=1), rate)
    elif how == "short":
        soundfile.write(path, samples[:399], rate)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no audio":
        path.write_bytes(b"RIFF, they said" * 100)
    elif how == "missing":
        path.unlink()


SAYS = {
    "rate": "8000 Hz",
    "channels": "2 channels, expected 1",
    "short": "399 samples, less than 0.025 s",
    "empty": "cannot decode|empty audio file",
    "no audio": "cannot decode",
    "missing": "no audio file|cannot read",
}


@pytest.mark.parametrize("how", SAYS)
@pytest.mark.parametrize("verb", ["train", "decode"])
def test_bad_audio_where_the_frontend_reads_it(copy, verb, how):
    folder = copy("exp/tiny/.train*", "exp/tiny/checkpoint.pth", "exp/tiny/decode")
    change(folder, recipe={"features": "raw"})
    audio = one_audio(folder, "test" if verb == "decode" else "dev")
    spoil(audio, how)
    line = complains(folder, VERBS[verb])
    assert re.search(SAYS[how], line)
    assert audio.name in line


@pytest.mark.parametrize("how", ["rate", "no audio", "short"])
def test_bad_audio_in_features(copy, how):
    folder = copy("dump")
    audio = one_audio(folder, "dev")
    spoil(audio, how)
    line = complains(folder, VERBS["features"])
    assert re.search(SAYS[how], line)
    assert audio.name in line


def test_bad_audio_in_deploy(copy):
    folder = copy("exp/tiny/deploy")
    spoil(one_audio(folder, "dev"), "rate")
    assert "8000 Hz" in complains(folder, VERBS["deploy"])


@pytest.mark.parametrize("verb", ["features", "tokens", "train", "decode"])
def test_an_empty_data_directory(copy, verb):
    own = {"features": ["dump"], "tokens": ["data/token_list"]}
    folder = copy("exp", *own.get(verb, []))
    shutil.copytree(recipes_whole(folder) / "exp", folder / "exp", dirs_exist_ok=True)
    shutil.rmtree(folder / "exp/tiny/decode")
    for path in [*folder.glob("data/t*/[wtsu]*"), *folder.glob("dump/*/t*/feats.scp")]:
        if path.is_file() and "token_list" not in path.parts:
            path.write_text("")
    (folder / "exp/tiny/.train.done.json").unlink()
    line = complains(folder, VERBS[verb])
    assert "no utterance in it" in line or "no transcript in it" in line


def recipes_whole(folder: Path) -> Path:
    """The recipe that ``folder`` is a copy of."""
    return folder.parent.parent / "tree/egs/fotaq/asr1"


@pytest.mark.parametrize(
    ("file", "spoilt", "says"),
    [
        ("text", lambda s: s.replace(s.split("\n")[1], s.split("\n")[1].split()[0]), "empty trans"),
        ("text", lambda s: s + s.split("\n")[0] + "\n", "occurs twice"),
        ("wav.scp", lambda s: s[: len(s) // 2], "cut short"),
        ("text", lambda s: s.partition("\n")[2], "is missing"),
    ],
    ids=["transcript", "duplicate", "truncated", "less"],
)
def test_a_bad_data_directory(copy, file, spoilt, says):
    folder = copy("exp/tiny/.train*", "exp/tiny/checkpoint.pth")
    path = folder / "data/dev" / file
    path.write_text(spoilt(path.read_text()))
    line = complains(folder, VERBS["train"])
    assert says in line
    assert f"data/dev/{file}" in line


def test_arks_cut_short(copy):
    folder = copy("exp/tiny/.train*", "exp/tiny/checkpoint.pth", "exp/tiny/decode")
    for name in ("dev", "test"):
        ark = next(folder.glob(f"dump/*/{name}/*.ark"))
        os.truncate(ark, ark.stat().st_size // 2)
    assert "and run stage 2" in complains(folder, VERBS["train"])
    assert "and run stage 2" in complains(folder, VERBS["decode"])


# -- checkpoints


def damage(path: Path, how: str) -> None:
    """Damage a checkpoint."""
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
        return
    state = torch.load(path, weights_only=True)
    model = state.get("model", state)
    key = "encoder.after_norm.weight"
    if how == "shape":
        model[key] = torch.ones(7)
    elif how == "lacks":
        del model[key]
    elif how == "more":
        model["encoder.before_norm.weight"] = torch.ones(16)
    elif how == "nan":
        model[key][3] = float("nan")
    torch.save(state, path)


HOWS = {
    "truncated": "is not a readable checkpoint",
    "shape": "another architecture: encoder.after_norm.weight has shape (7,)",
    "lacks": "another architecture: it lacks encoder.after_norm.weight",
    "more": "another architecture: it holds encoder.before_norm.weight",
    "nan": "encoder.after_norm.weight holds NaN",
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("verb", ["deploy", "decode"])
def test_a_bad_model(copy, verb, how):
    folder = copy("exp/tiny/decode")
    path = folder / (AVERAGE if verb == "deploy" else DEPLOYED)
    damage(path, how)
    line = complains(folder, VERBS[verb])
    assert HOWS[how] in line
    assert path.name in line


def test_a_bad_model_by_name(copy):
    folder = copy()
    line = complains(folder, (*VERBS["deploy"], "--checkpoint", "exp/tiny/checkpoint.pth"))
    assert "checkpoint.pth holds no model" in line


@pytest.mark.parametrize(
    ("how", "says"), [("truncated", "is damaged"), ("shape", "of another architecture")]
)
def test_training_does_not_go_on_from_a_bad_checkpoint(copy, how, says):
    folder = copy("exp/tiny/.train.done.json")
    damage(folder / "exp/tiny/checkpoint.pth", how)
    line = complains(folder, VERBS["train"])
    assert says in line
    assert "remove exp/tiny" in line


# -- training that fails


def test_gradients_that_are_all_nan(copy):
    folder = copy("exp")
    change(folder, optim_conf={"lr": 1e30}, scheduler=None)
    ended = forked.Command(folder, VERBS["train"], folder.with_suffix(".logs")).wait()
    assert ended.code == 1
    assert ended.stderr.count("\n") == 1
    assert "no step had finite gradients" in ended.stderr
    assert "lr" in ended.stderr
    assert not (folder / AVERAGE).exists()


def test_an_error_inside_espnet(copy):
    folder = copy("exp/tiny/.train*", "exp/tiny/checkpoint.pth")
    change(folder, recipe={"features": "raw"})
    audio = one_audio(folder, "train")
    os.truncate(audio, audio.stat().st_size // 2)  # its header is good
    ended = forked.Command(folder, VERBS["train"], folder.with_suffix(".logs")).wait()
    assert ended.code == 1
    assert ended.stderr.startswith("espnet-ext train: error: ESPnet stopped: ")
    assert ended.stderr.count("\n") == 1
    assert "Traceback" in (folder / "exp/tiny/train.log").read_text()

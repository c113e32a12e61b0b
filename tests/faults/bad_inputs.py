"""Kinds of bad input, each with the command that meets it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from tests.fixtures.finished import AVERAGE, CONFIG, DEPLOYED, VERBS, change

TRAIN, DEPLOY, DECODE, SCORE = (VERBS[v] for v in ("train", "deploy", "decode", "score"))
FEATURES, TOKENS, REPORT = (VERBS[v] for v in ("features", "tokens", "report"))
RETRAIN = ("exp/tiny/.train*", "exp/tiny/checkpoint.pth")
MODEL = str(Path(DEPLOYED).parent)


@dataclass(frozen=True)
class Case:
    """A kind of bad input.

    Attributes:
        words: the command.
        spoil: makes it in a copy of a finished recipe.
        without: what has to be absent, so that the command does its work.
    """

    words: tuple[str, ...]
    spoil: Callable[[Path], object] = lambda folder: None
    without: tuple[str, ...] = ()


def config(**over: Any) -> Case:
    """A config with other values, trained from the start."""
    return Case(TRAIN, lambda folder: change(folder, **over), ("exp",))


def written(text: str) -> Case:
    """A config of that text."""
    return Case(TRAIN, lambda folder: (folder / CONFIG).write_text(text), ("exp",))


def option(*words: str) -> Case:
    """Options for ESPnet."""
    return Case((*TRAIN, "--", *words), without=("exp",))


RETRAINED = Case(TRAIN, without=RETRAIN)


def edited(file: str, edit: Callable[[str], str], case: Case = RETRAINED) -> Case:
    """A text file with other content."""

    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(edit(path.read_text()))

    return Case(case.words, spoil, case.without)


def bytes_of(file: str, content: bytes, case: Case) -> Case:
    """A file of these bytes."""
    return Case(case.words, lambda folder: (folder / file).write_bytes(content), case.without)


def first_audio(folder: Path, name: str = "dev") -> Path:
    """The audio of the first utterance of a set."""
    return folder / (folder / "data" / name / "wav.scp").read_text().split()[1]


def audio(make: Callable[[Path], object]) -> Case:
    """An utterance of the development set whose features are computed."""
    return Case(FEATURES, lambda folder: make(first_audio(folder)), ("dump",))


def samples(edit: Callable[[np.ndarray], np.ndarray], rate: int = 1) -> Callable[[Path], None]:
    """A function that writes other samples into an audio file, its rate divided by ``rate``."""

    def spoil(path: Path) -> None:
        found, old = soundfile.read(path, dtype="float32")
        path.unlink()
        soundfile.write(path, edit(found), old // rate, "FLOAT", format="WAV")

    return spoil


def state(file: str, edit: Callable[[dict], object], case: Case) -> Case:
    """A checkpoint with other weights."""

    def spoil(folder: Path) -> None:
        found = torch.load(folder / file, weights_only=True)
        edit(found)
        torch.save(found, folder / file)

    return Case(case.words, spoil, case.without)


def cut(file: str, case: Case) -> Case:
    """A file of which half is missing; the name may be a pattern."""

    def spoil(folder: Path) -> None:
        path = next(folder.glob(file))
        os.truncate(path, path.stat().st_size // 2)

    return Case(case.words, spoil, case.without)


class Runs:
    """Code in a pickle."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


AGAIN = Case(DEPLOY, without=("exp/tiny/deploy",))
DECODED = Case(DECODE, without=("exp/tiny/decode",))
LOADED = "encoder.after_norm.weight"
CASES: dict[str, Case] = {
    "an unknown key of ESPnet": config(batch_bin=1),
    "an unknown encoder": config(encoder="hrf_confromer"),
    "an unknown option of the encoder": config(encoder_conf={"num_block": 2}),
    "an unknown option of a method": config(encoder_conf={"hrf": {"ratoi": 2}}),
    "a value of the wrong type": config(encoder_conf={"num_blocks": "two"}),
    "a ratio below 1": config(encoder_conf={"hrf": {"ratio": 0.5}}),
    "heads that do not divide the width": config(encoder_conf={"attention_heads": 3}),
    "an unknown key of the recipe": config(recipe={"averages": 2}),
    "an unknown deployed form": config(recipe={"variant": "merge"}),
    "an unknown way of decoding": config(recipe={"decode": {"ctc_gready": {}}}),
    "an unknown option of decoding": config(recipe={"decode": {"ctc_att_beam": {"beamsize": 1}}}),
    "a negative learning rate": config(optim_conf={"lr": -1.0}),
    "a config that is no YAML": written("encoder: [conformer\n"),
    "a key twice": written("encoder: conformer\nencoder: transformer\n"),
    "a number in quotes": config(optim_conf={"lr": "0.001"}),
    "an include that is missing": written("include: no.yaml\n"),
    "an include of itself": written("include: train_tiny.yaml\n"),
    "no such config": Case(("train", "conf/train_tinny.yaml")),
    "an unknown verb": Case(("trian", CONFIG)),
    "an unknown option of a verb": Case(("decode", CONFIG, "--stes", "test")),
    "an unknown option of ESPnet": option("--max_epok", "1"),
    "a wrong value of an option of ESPnet": option("--max_epoch", "one"),
    "an option of ESPnet that the verb has": option("--output_dir", "elsewhere"),
    "more GPUs than there are": Case((*TRAIN, "--ngpu", "8"), without=("exp",)),
    "an unknown set": Case(("decode", CONFIG, "--sets", "tset")),
    "a form that there is not": Case((*DEPLOY, "--variant", "mergd")),
    "a checkpoint that there is not": Case((*DEPLOY, "--checkpoint", "exp/tiny/9epoch.pth")),
    "a checkpoint of a whole training": Case((*DEPLOY, "--checkpoint", "exp/tiny/checkpoint.pth")),
    "a baseline that there is not": Case((*SCORE, "--baseline", "tinny")),
    "itself as baseline": Case((*SCORE, "--baseline", "tiny")),
    "a part of no parts": Case((*FEATURES, "--part", "4/3")),
    "no data": Case(FEATURES, without=("data/*",)),
    "no features": Case(TRAIN, without=("dump", *RETRAIN)),
    "no tokens": Case(TRAIN, without=("data/token_list", *RETRAIN)),
    "no training": Case(DEPLOY, without=("exp",)),
    "no deployed model": Case(DECODE, without=("exp/tiny/deploy",)),
    "no hypotheses": Case(SCORE, without=("exp/tiny/decode",)),
    "no scores": Case(REPORT, without=("exp/tiny/score",)),
    "an utterance twice": edited("data/dev/text", lambda s: s + s.split("\n")[0] + "\n"),
    "an empty transcript": edited(
        "data/dev/text", lambda s: s.replace(s.split("\n")[1], s.split("\n")[1].split()[0])
    ),
    "an utterance without a transcript": edited("data/dev/text", lambda s: s.partition("\n")[2]),
    "a list that is cut short": edited("data/dev/wav.scp", lambda s: s[: len(s) // 2]),
    "an empty line in a list": edited("data/dev/text", lambda s: "\n" + s),
    "text that is not UTF-8": bytes_of("data/dev/text", b"a \xff\n", RETRAINED),
    "a command in a list of arks": edited(
        "dump/fbank40/dev/feats.scp", lambda s: s.replace("dump/", "| touch ", 1)
    ),
    "audio that is missing": audio(Path.unlink),
    "an empty audio file": audio(lambda path: path.write_bytes(b"")),
    "a file that is no audio": audio(lambda path: path.write_bytes(b"RIFF, they said" * 100)),
    "audio of another rate": audio(samples(lambda x: x, rate=2)),
    "audio of two channels": audio(samples(lambda x: np.stack([x, x], 1))),
    "audio that is too short": audio(samples(lambda x: x[:100])),
    "audio with NaN": audio(samples(lambda x: np.where(np.arange(len(x)) == 9, np.nan, x))),
    "an ark that is cut short": cut("dump/*/dev/*.ark", RETRAINED),
    "a checkpoint that is cut short": cut(AVERAGE, AGAIN),
    "a state to go on from that is cut short": cut(
        "exp/tiny/checkpoint.pth", Case(TRAIN, without=("exp/tiny/.train.done.json",))
    ),
    "weights of another shape": state(AVERAGE, lambda s: s.update({LOADED: torch.ones(7)}), AGAIN),
    "weights that lack a layer": state(AVERAGE, lambda s: s.pop(LOADED), AGAIN),
    "weights with NaN": state(AVERAGE, lambda s: s[LOADED].mul_(float("nan")), AGAIN),
    "a checkpoint with code in it": Case(
        DEPLOY, lambda f: torch.save({"a": Runs()}, f / AVERAGE), AGAIN.without
    ),
    "a deployed model that was changed": state(DEPLOYED, lambda s: s[LOADED].add_(1.0), DECODED),
    "a deployed config that was changed": edited(
        f"{MODEL}/config.yaml", lambda s: s.replace("linear_units: 24", "linear_units: 25"), DECODED
    ),
    "a deployed model without its record": Case(
        REPORT, lambda folder: (folder / MODEL / "deploy.json").unlink()
    ),
    "hypotheses that were changed": edited(
        "exp/tiny/decode/merged/ctc_greedy/test/text", lambda s: s + "\n", Case(SCORE)
    ),
    "other settings in the same folder": Case(
        TRAIN,
        lambda folder: change(folder, encoder_conf={"linear_units": 32}),
        ("exp/tiny/.train.done.json",),
    ),
    "no such file to transcribe": Case(("transcribe", MODEL, "no.wav")),
    "no such model": Case(("transcribe", "exp/tiny/deploy/none", "data/dev/text")),
    "text in place of audio": Case(("transcribe", MODEL, "data/dev/text")),
    "bytes that are no number": Case(("transcribe", MODEL, "a.wav", "--max-bytes", "much")),
    "a stream of a model that does not stream": Case(("transcribe", MODEL, "--stream", "-")),
}


def made(case: Case, recipes: Any, name: str) -> Path:
    """Return a copy of the finished recipe with the bad input in it."""
    folder = recipes.copy(name, case.without)
    case.spoil(folder)
    return folder


def recorded(path: Path) -> dict[str, list[str]]:
    """Rows of the published table, by kind."""
    return {row[0]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def removed(folder: Path) -> None:
    """Remove a copy and its logs."""
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_suffix(".logs"), ignore_errors=True)

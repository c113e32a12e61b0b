"""Bad input to the verbs: one clear line, a non-zero exit, nothing written, nothing lost."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from tests.fixtures import forked, miniature

pytestmark = pytest.mark.xdist_group("bad_input")

CONFIG = "conf/train_tiny.yaml"
VERBS = {
    "features": ("features", CONFIG, "--nj", "1"),
    "tokens": ("tokens", CONFIG),
    "train": ("train", CONFIG, "--threads", "1"),
    "deploy": ("deploy", CONFIG),
    "decode": ("decode", CONFIG, "--sets", "test", "--nj", "1"),
    "score": ("score", CONFIG, "--sets", "test"),
    "report": ("report", CONFIG),
}
AVERAGE = "exp/tiny/valid.loss.ave_2best.pth"
DEPLOYED = "exp/tiny/deploy/merged/model.pth"


class Recipes:
    """Copies of a recipe whose stages have all run, each for one fault."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.whole = miniature.make_with_data(folder, max_epoch=2)
        forked.load()
        for words in VERBS.values():
            ended = forked.Command(self.whole, words, folder / "logs").wait()
            assert ended.code == 0, ended.stdout + ended.stderr

    def copy(self, name: str, without: tuple[str, ...] = ()) -> Path:
        """Return a new copy that lacks what the patterns ``without`` name."""
        copy = Path(shutil.copytree(self.whole, self.folder / "copies" / name, symlinks=True))
        for pattern in without:
            for path in list(copy.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return copy


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return Recipes(tmp_path_factory.mktemp("bad_input"))


@pytest.fixture
def copy(recipes, request):
    """Make a copy of the recipe, removed at the end."""
    name = re.sub(r"\W+", "_", request.node.name)
    yield lambda *without: recipes.copy(name, without)
    shutil.rmtree(recipes.folder / "copies" / name, ignore_errors=True)


def content(folder: Path) -> dict[str, bytes]:
    """Every file by its name; ESPnet's log grows whatever happens."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.suffix != ".log"}


def complains(
    folder: Path, words: tuple[str, ...], prepare: Callable[[], object] | None = None
) -> str:
    """Run a verb that must fail with one line and change nothing but caches; return the line."""
    before = content(folder)
    ended = forked.Command(folder, words, folder.with_suffix(".logs"), prepare).wait(100)
    after = content(folder)
    assert ended.code == 1, ended.stdout + ended.stderr
    # A progress bar rewrites its line.
    lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(f"espnet-ext {words[0]}: error: ")
    assert "Traceback" not in ended.stdout
    assert {name: after.get(name) for name in before} == before
    return lines[0].partition(": error: ")[2] + added(set(after) - set(before))


def added(names: set[str]) -> str:
    """Statistics are whole before the training proper starts, and may stay; nothing else may."""
    left = sorted(n for n in names if not n.startswith("exp/stats_"))
    return f" LEFT BEHIND {left}" if left else ""


def change(folder: Path, **over: object) -> None:
    """Put keys into the config, section by section."""
    path = folder / CONFIG
    old = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(miniature.merged(old, over)))


# -- configs

WRONG_CONFIGS = [
    ({"batch_bin": 1}, "unknown key 'batch_bin'; did you mean 'batch_bins'?"),
    ({"encoder": "hrf_confromer"}, "unknown encoder 'hrf_confromer'; did you mean 'hrf_conformer'"),
    ({"encoder_conf": {"num_block": 2}}, "'num_block'; did you mean 'num_blocks'?"),
    ({"encoder_conf": {"hrf": {"ratoi": 2}}}, "'ratoi'; did you mean 'ratio'?"),
    ({"recipe": {"variant": "merge"}}, "unknown variant 'merge'; did you mean 'merged'?"),
    ({"recipe": {"averages": 2}}, "unknown key in recipe: 'averages'; did you mean 'average'?"),
    ({"recipe": {"decode": {"ctc_gready": {}}}}, "'ctc_gready'; did you mean 'ctc_greedy'?"),
    ({"recipe": {"decode": {"ctc_att_beam": {"beamsize": 1}}}}, "did you mean 'beam_size'?"),
    ({"optim_conf": {"lr": -1.0}}, "Invalid learning rate"),
]


@pytest.mark.parametrize(("over", "says"), WRONG_CONFIGS, ids=lambda v: None)
def test_wrong_config_is_refused_before_training(copy, over, says):
    folder = copy("exp")
    change(folder, **over)
    line = complains(folder, VERBS["train"])
    assert says in line
    assert "train_tiny.yaml" in line
    assert not (folder / "exp").exists()


@pytest.mark.parametrize(("over", "says"), WRONG_CONFIGS[6:8], ids=lambda v: None)
def test_wrong_decode_method_or_option(copy, over, says):
    folder = copy("exp/tiny/decode")
    change(folder, **over)
    assert says in complains(folder, VERBS["decode"])


def test_unknown_variant(copy):
    line = complains(copy(), (*VERBS["deploy"], "--variant", "mergd"))
    assert line == "unknown variant 'mergd'; known is: merged" or "did you mean 'merged'?" in line


def test_another_config_under_the_same_tag(copy):
    folder = copy("exp/tiny/.train.done.json")
    change(folder, encoder_conf={"linear_units": 32})
    line = complains(folder, VERBS["train"])
    assert "exp/tiny holds a run of other settings" in line


# -- options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--max_epok", "1"), "unknown option '--max_epok'; did you mean '--max_epoch'?"),
        (("--max_epoch", "one"), "--max_epoch: invalid int value: 'one'"),
        (("--encoder", "confromer"), "--encoder: invalid choice: 'confromer'"),
        (("--output_dir", "elsewhere"), "--output_dir is not for after --"),
        (("--resume=false",), "--resume is not for after --"),
        (("--ngpu", "1"), "give --ngpu before --"),
        (("stray",), "unknown option 'stray'"),
    ],
)
def test_wrong_option_for_espnet(copy, words, says):
    folder = copy("exp")
    line = complains(folder, (*VERBS["train"], "--", *words))
    assert says in line
    assert len(line) < 300
    assert not (folder / "exp").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(copy):
    line = complains(copy("exp"), (*VERBS["train"], "--ngpu", "1"))
    assert "torch sees no GPU here" in line


# -- missing output of a stage


@pytest.mark.parametrize(
    ("verb", "missing", "stage"),
    [
        ("features", "data/*", 1),
        ("tokens", "data/*", 1),
        ("train", "data/dev/text", 1),
        ("train", "dump", 2),
        ("train", "data/token_list", 3),
        ("deploy", "exp/tiny/*.ave*.pth", 4),
        ("deploy", "exp/tiny/config.yaml", 4),
        ("deploy", "data/dev", 1),
        ("decode", "exp/tiny/deploy", 5),
        ("decode", "dump", 2),
        ("decode", "data/*", 1),
        ("score", "exp/tiny/decode", 6),
        ("score", "data/test", 1),
        ("report", "exp/tiny/train.json", 4),
        ("report", "exp/tiny/deploy", 5),
        ("report", "exp/tiny/decode", 6),
        ("report", "exp/tiny/score", 7),
    ],
)
def test_a_missing_stage_is_named(copy, verb, missing, stage):
    # Its own work has to be undone: what is up to date needs nothing.
    own = {"train": "exp/tiny/.train*", "deploy": "exp/tiny/deploy", "decode": "exp/tiny/decode"}
    folder = copy(missing, *([own[verb]] if verb in own else []))
    line = complains(folder, VERBS[verb])
    assert re.search(rf"(--|\b)stages? {stage}\b", line), line


def test_an_unknown_set(copy):
    line = complains(copy(), ("decode", CONFIG, "--sets", "tset"))
    assert "no set 'tset'; did you mean 'test'?" in line


# -- data and audio


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
    "empty": "",
    "no audio": "cannot decode",
    "missing": "",
}


@pytest.mark.parametrize("how", SAYS)
@pytest.mark.parametrize("verb", ["train", "decode"])
def test_bad_audio_where_the_frontend_reads_it(copy, verb, how):
    folder = copy("exp/tiny/.train*", "exp/tiny/checkpoint.pth", "exp/tiny/decode")
    change(folder, recipe={"features": "raw"})
    audio = one_audio(folder, "test" if verb == "decode" else "dev")
    spoil(audio, how)
    line = complains(folder, VERBS[verb])
    assert SAYS[how] in line
    assert audio.name in line


@pytest.mark.parametrize("how", ["rate", "no audio", "short"])
def test_bad_audio_in_features(copy, how):
    folder = copy("dump")
    audio = one_audio(folder, "dev")
    spoil(audio, how)
    line = complains(folder, VERBS["features"])
    assert SAYS[how] in line
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


# -- a full disk


def full_disk(folder: str) -> Callable[[], None]:
    """Return what makes every opening of a file to be written under ``folder`` fail."""

    def prepare() -> None:
        place = os.path.abspath(folder)

        def hook(event: str, arguments: tuple) -> None:
            if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
                return
            path = os.path.abspath(os.fsdecode(arguments[0]))
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and path.startswith(place) and not path.endswith(".log"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        sys.addaudithook(hook)

    return prepare


OWN = {
    "features": ("dump", "dump"),
    "tokens": ("data/token_list", "data/token_list"),
    "train": ("exp", "exp"),
    "deploy": ("exp/tiny/deploy", "exp"),
    "decode": ("exp/tiny/decode", "exp"),
    "score": ("exp/tiny/score", "exp"),
    "report": ("exp/tiny/*result*", "exp"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_space_left(copy, verb):
    without, place = OWN[verb]
    folder = copy(without)
    line = complains(folder, VERBS[verb], full_disk(folder / place))
    assert "no space left on the disk" in line


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mount a disk of that size; skip where that is not permitted."""
    folder.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size={kilobytes}k none '{folder}' 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills(recipes, verb, tmp_path):
    """A real disk, filled so that the stage can start but not end."""
    without, _ = OWN[verb]
    with small_disk(tmp_path / "disk", 8192) as disk:
        folder = disk / "recipe"
        shutil.copytree(recipes.whole, folder, symlinks=True)
        for path in list(folder.glob(without)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = content(folder)
        free = shutil.disk_usage(disk).free
        with open(disk / "ballast", "wb") as ballast:
            ballast.write(bytes(max(0, free - ROOM.get(verb, 4096))))
        ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert ended.code == 1, ended.stdout
        lines = [line for line in ended.stderr.splitlines() if line and "%|" not in line]
        assert len(lines) == 1, ended.stderr
        assert "no space left on the disk" in lines[0]
        after = content(folder)
        assert {name: after.get(name) for name in before} == before
        (disk / "ballast").unlink()
        ended = forked.Command(folder, VERBS[verb], tmp_path / "logs").wait()
        assert ended.code == 0, ended.stdout + ended.stderr


# Bytes that are free: enough for the small files, not for the large.
ROOM = {"train": 300_000, "deploy": 65_536}

"""One training in several processes: the same gradients, one record, nothing lost by a kill."""

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from espnet_ext.files import read_json
from tests.fixtures import forked, miniature, ranks
from tests.recipes.test_kill import written

TRAIN = ("train", "conf/train_tiny.yaml", "--threads", "1")
TWO = (*TRAIN, "--processes", "2")
# No dropout and no clipping: then the steps are those of one process with the whole batch. The
# statistics of BatchNorm would differ, as they are those of a process on a CPU.
EXACT = {
    "encoder": "transformer",
    "encoder_conf": {
        **dict.fromkeys(("macaron_style", "rel_pos_type", "pos_enc_layer_type", "hrf")),
        **dict.fromkeys(("selfattention_layer_type", "cnn_module_kernel")),
        **dict.fromkeys(("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"), 0.0),
    },
    "decoder_conf": dict.fromkeys(
        (
            "dropout_rate",
            "positional_dropout_rate",
            "self_attention_dropout_rate",
            "src_attention_dropout_rate",
        ),
        0.0,
    ),
    "optim": "sgd",
    "optim_conf": {"lr": 0.02},
    "scheduler": None,
    "scheduler_conf": None,
    "grad_clip": 1000.0,
    "batch_bins": 20000,
    "max_epoch": 1,
    "recipe": {"features": "raw", "average": 1, "cpu_dtype": "float32"},
}
STREAMING = {
    "encoder": "residual_streaming_transformer",
    "encoder_conf": {
        **dict.fromkeys(("input_layer", "positional_dropout_rate", "attention_dropout_rate")),
        "conv_channels": 4,
        "chunk_ms": 160,
        "history_ms": 320,
        "lookahead_ms": 0,
        "residual": {"share": 2, "rank": 2, "diagonal": True},
    },
    "decoder": "transducer",
    "decoder_conf": {
        **dict.fromkeys(miniature.CONFIG["decoder_conf"]),
        **dict.fromkeys(EXACT["decoder_conf"]),
        "num_layers": 1,
        "hidden_size": 16,
        "embed_size": 8,
    },
    "joint_net_conf": {"joint_space_size": 16},
    "model_conf": {"ctc_weight": 0.3},
    "recipe": {"decode": {"ctc_att_beam": None, "ctc_greedy": None, "transducer_greedy": {}}},
}
METHODS = {
    "transformer": {},
    "hrf_transformer": {"hrf": {"sites": ["ffn"], "ratio": 2, "factors": 2}},
    "residual_transformer": {"residual": {"share": 2, "rank": 2, "diagonal": True}},
    "nested_transformer": {"nested": {"depths": [2, 1], "bits": [32, 4], "sample": 1}},
}
SYSTEMS = {name: {"encoder": name, "encoder_conf": conf} for name, conf in METHODS.items()}
SYSTEMS["streaming_transducer"] = STREAMING


def without_nothing(config: dict) -> dict:
    """The config without keys that are null: ``EXACT`` takes options away so."""
    plain = {k: without_nothing(v) if isinstance(v, dict) else v for k, v in config.items()}
    return {key: value for key, value in plain.items() if value is not None}


def write(folder: Path, tag: str, **over) -> str:
    tiny = yaml.safe_load((folder / TRAIN[1]).read_text())  # nothing to include
    both = miniature.merged(miniature.merged(tiny, EXACT), over)
    path = folder / "conf" / f"train_{tag}.yaml"
    path.write_text(yaml.safe_dump(without_nothing(both), sort_keys=False), encoding="utf-8")
    return f"conf/train_{tag}.yaml"


def run(folder: Path, words: tuple[str, ...], prepare=None, code: int = 0) -> forked.Outcome:
    ended = forked.Command(folder, words, folder / "logs", prepare).wait()
    assert ended.code == code, ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe before stage 4; conf/train_tiny.yaml has two epochs."""
    root = tmp_path_factory.mktemp("processes")
    folder = miniature.make_with_data(root, max_epoch=2, batch_bins=5000)
    forked.load()
    for words in (("features", TRAIN[1], "--nj", "1"), ("tokens", TRAIN[1])):
        run(folder, words)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(recipe):
    """The recipe after a training in two processes, by torch's launcher."""
    folder = Path(shutil.copytree(recipe, recipe.parent / "whole"))
    run(folder, TWO)
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_train_as_one_with_the_whole_batch(system, recipe, tmp_path):
    def prepare() -> None:
        ranks.instead_of_torch()
        # Its convolutions round by the size of the batch, and a ReLU of about 0 is then on in one
        # run and off in the other (on processors with AVX2 alone: 3e-4 of a weight).
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]

    found = []
    for processes in (1, 2):
        folder = Path(shutil.copytree(recipe, tmp_path / str(processes)))
        config = write(folder, "exact", **SYSTEMS[system])
        words = ("train", config, "--threads", "1", "--processes", str(processes))
        run(folder, words, prepare)
        found.append(torch.load(folder / "exp/exact/1epoch.pth", weights_only=True))
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-5, atol=1e-5, msg=name)
    norms = [value for name, value in found[0].items() if re.search(r"norm\w*\.weight", name)]
    assert max((norm - 1).abs().max() for norm in norms) > 1e-3  # far more than the tolerance


def test_the_record_names_all_processes(uninterrupted):
    record = read_json(uninterrupted / "exp/tiny/train.json")
    assert record["device"] == "2 processes of cpu, gloo"
    assert record["threads"] == 1
    assert record["epochs"] == 2
    one = read_json(uninterrupted / "exp/tiny/calls.json")
    assert len(one) == 1 and one[0]["epochs"] == [1, 2]
    log = (uninterrupted / "exp/tiny/train.log").read_text()
    assert log.count("1epoch results") == 1


def test_the_memory_is_that_of_all_processes(recipe, tmp_path):
    """Of known sizes: a fork of this process has what other tests left in it."""
    folder = Path(shutil.copytree(recipe, tmp_path / "known"))

    def known_sizes() -> None:
        from espnet_ext.bridge.training import run_record
        from espnet_ext.stages import training_process

        ranks.instead_of_torch()
        for module in (run_record, training_process):
            module.peak_rss_mb = lambda: {"0": 100.0, "1": 250.5}[os.environ["RANK"]]

    run(folder, TWO, known_sizes)
    assert read_json(folder / "exp/tiny/train.json")["peak_rss_mb"] == 350.5


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for word in found for child in (int(word), *children(int(word)))]


def workers_of(command: forked.Command) -> list[int]:
    """The processes of a training that torch's launcher started, once they train."""
    log = command.paths[0]
    deadline = time.monotonic() + 200
    while "1/2epoch started" not in log.read_text() and time.monotonic() < deadline:
        assert not command.ended(), command.wait()
        time.sleep(0.02)
    spawned = [
        pid
        for pid in children(command.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return sorted(spawned)


def test_an_error_of_a_process_is_one_line(recipe, tmp_path):
    folder = Path(shutil.copytree(recipe, tmp_path / "error"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = (*TWO, "--", "--batch_type", "unsorted", "--batch_size", "1")

    def with_scratch() -> None:
        os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None

    ended = run(folder, words, with_scratch, code=1)
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "ESPnet stopped: RuntimeError: The batch-size must be equal or more" in ended.stderr
    assert not list(scratch.iterdir())


def test_a_killed_process_ends_all_with_one_line_and_the_run_resumes(
    recipe, uninterrupted, tmp_path
):
    folder = Path(shutil.copytree(recipe, tmp_path / "killed"))
    command = forked.Command(folder, TWO, folder / "logs")
    workers = workers_of(command)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    start = time.monotonic()
    ended = command.wait(60)
    assert time.monotonic() - start < 20
    assert ended.code == 1
    lines = [line for line in ended.stderr.splitlines() if line]
    assert len(lines) == 1, ended.stderr
    host = os.uname().nodename.split(".")[0]
    assert re.search(rf"process [01] on {re.escape(host)} was ended by SIGKILL", lines[0])
    assert "exp/tiny/train.log" in lines[0] and "run the same command" in lines[0]
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    run(folder, TWO)
    assert compared(folder) == compared(uninterrupted)


def test_a_signal_to_the_launcher_saves_and_stops_all(recipe, uninterrupted, tmp_path):
    folder = Path(shutil.copytree(recipe, tmp_path / "stopped"))
    command = forked.Command(folder, TWO, folder / "logs")
    workers = workers_of(command)
    os.kill(command.pid, signal.SIGUSR1)
    ended = command.wait(60)
    assert ended.code == os.EX_TEMPFAIL
    assert ended.stderr.strip() == (
        "espnet-ext train: error: stopped by SIGUSR1; run the same command to go on from the last "
        "saved state"
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert (folder / "exp/tiny/checkpoint_step.pth").is_file()
    run(folder, TWO, ranks.instead_of_torch)
    assert compared(folder) == compared(uninterrupted)


def compared(folder: Path) -> dict[str, object]:
    found = written(folder)
    names = ("rank0.out", "rank1.out")
    return {name: value for name, value in found.items() if name not in names}


def stop_in_step(number: int, sign: int = signal.SIGTERM, rank: int = 0):
    """Return what makes the process of a rank get a signal in a step of a training."""

    def prepare() -> None:
        from espnet_ext.bridge.training import trainer

        ranks.instead_of_torch()
        plain, seen = trainer.StepCheckpoints.save_if_due, [0]

        def save_if_due(self, parts, done):
            seen[0] += 1
            if seen[0] == number and int(os.environ.get("RANK", 0)) == rank:
                os.kill(os.getpid(), sign)
            plain(self, parts, done)

        trainer.StepCheckpoints.save_if_due = save_if_due

    return prepare


@pytest.fixture(scope="module")
def alone(recipe):
    """The recipe after a training in one process."""
    folder = Path(shutil.copytree(recipe, recipe.parent / "alone"))
    run(folder, TRAIN)
    return folder


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops_within_an_epoch(sign, recipe, alone, tmp_path):
    folder = Path(shutil.copytree(recipe, tmp_path / "stopped"))
    stop = stop_in_step(30, sign)
    ended = run(folder, TRAIN, stop, code=os.EX_TEMPFAIL)
    assert ended.stderr.strip() == (
        f"espnet-ext train: error: stopped by {sign.name}; the state is saved, run the same "
        "command to go on"
    )
    assert (folder / "exp/tiny/checkpoint_step.pth").is_file()
    ended = run(folder, TRAIN)
    assert re.search(r"goes on in epoch 2, after \d+ of its steps", ended.stdout)
    assert compared(folder) == compared(alone)
    assert not (folder / "exp/tiny/checkpoint_step.pth").exists()


def test_a_checkpoint_that_is_damaged_or_of_other_processes(recipe, tmp_path):
    folder = Path(shutil.copytree(recipe, tmp_path / "stopped"))
    run(folder, TRAIN, stop_in_step(30), code=os.EX_TEMPFAIL)
    path = folder / "exp/tiny/checkpoint_step.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    ended = run(folder, TRAIN, code=1)
    assert len(ended.stderr.splitlines()) == 1
    assert "exp/tiny/checkpoint_step.pth is damaged" in ended.stderr
    assert "remove it to go on from the last whole epoch" in ended.stderr
    path.write_bytes(whole)
    run(folder, TWO, ranks.instead_of_torch)
    said = (folder / "rank0.out").read_text()
    assert "epoch 2 starts again: its state is of 1 processes" in said
    assert not path.exists()


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(recipe, alone, tmp_path):
    """In the first epoch, of which ESPnet has nothing, with one checkpoint a step."""
    folder = Path(shutil.copytree(recipe, tmp_path / "killed"))
    config = folder / TRAIN[1]
    text = config.read_text()
    config.write_text(text.replace("recipe:", "recipe:\n  checkpoint_minutes: 0.000001"))
    run(folder, TRAIN, stop_in_step(8, signal.SIGKILL), code=-signal.SIGKILL)
    ended = run(folder, TRAIN)
    assert "goes on in epoch 1, after 6 of its steps" in ended.stdout
    assert compared_states(folder) == compared_states(alone)
    assert len(read_json(folder / "exp/tiny/calls.json")) == 2


def compared_states(folder: Path) -> dict[str, object]:
    return {k: v for k, v in compared(folder).items() if k.endswith(".pth")}


def test_processes_that_are_stopped_within_an_epoch_go_on_with_the_same_batches(
    recipe, uninterrupted, tmp_path
):
    """The signal reaches one of them; all stop after the same step."""
    folder = Path(shutil.copytree(recipe, tmp_path / "stopped"))

    def prepare() -> None:
        stop_in_step(30, rank=1)()
        ranks.instead_of_torch(succeed=False)

    forked.Command(folder, TWO, folder / "logs", prepare).wait()
    for rank in (0, 1):
        assert "stopped by SIGTERM; the state is saved" in (folder / f"rank{rank}.out").read_text()
    run(folder, TWO, ranks.instead_of_torch)
    assert "goes on in epoch 2" in (folder / "rank0.out").read_text()
    assert compared(folder) == compared(uninterrupted)


def test_two_nodes_train_as_one(recipe, uninterrupted, tmp_path):
    folder = Path(shutil.copytree(recipe, tmp_path / "nodes"))
    words = (*TRAIN, "--num_nodes", "2", "--master", f"localhost:{ranks.free_port()}")

    def node(number: int) -> forked.Command:
        prepare = lambda: os.environ.update(NODE_RANK=str(number))  # noqa: E731
        return forked.Command(folder, words, folder / f"logs{number}", prepare)

    ended = [command.wait() for command in (node(1), node(0))]
    assert [e.code for e in ended] == [0, 0], ended
    assert "node 1 has done its part" in ended[0].stdout
    assert compared(folder) == compared(uninterrupted)
    record = read_json(folder / "exp/tiny/train.json")
    assert record["device"] == "2 processes of cpu on 2 nodes, gloo"
    # Done already: node 1 hears so, and does not wait.
    ended = [command.wait() for command in (node(1), node(0))]
    assert [e.code for e in ended] == [0, 0], ended
    assert "up to date" in ended[1].stdout

"""Stage 6 on a small streaming transducer: what is timed, and what is up to date."""

import json

import pytest
import soundfile

from espnet_ext.config.training import load_config
from espnet_ext.experiment import Experiment
from espnet_ext.stages.decode import decode
from tests.fixtures import streams


@pytest.fixture
def run(tmp_path, monkeypatch) -> Experiment:
    monkeypatch.chdir(tmp_path)
    streams.make(tmp_path, variants=("merged",))
    for name in ("first", "second"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lines = []
        for seed, seconds in enumerate((0.8, 1.3)):
            path = folder / f"{seed}.wav"
            soundfile.write(path, streams.wave(seconds, seed), streams.RATE)
            lines.append(f"u{seed} {path}\n")
        (folder / "wav.scp").write_text("".join(lines))
        (folder / "utt2dur").write_text("u0 0.8\nu1 1.3\n")
    return Experiment.of(load_config(tmp_path / "train_tiny.yaml"), "merged", tmp_path)


def test_the_real_time_factor_is_that_of_the_first_set(run, capsys):
    decode(run, ["second", "first"], jobs=1)
    logs = {
        (method, name): json.loads((run.decoded(method, name) / "decode.json").read_text())
        for method in ("transducer_greedy", "transducer_beam")
        for name in ("first", "second")
    }
    timed = {key for key, log in logs.items() if "rtf" in log}
    assert timed == {("transducer_greedy", "second"), ("transducer_beam", "second")}
    assert all(log["utterances"] == 2 for log in logs.values())
    assert capsys.readouterr().out.count("RTF") == 2
    decode(run, ["first", "second"], jobs=1)
    assert capsys.readouterr().out.count("is up to date") == 4

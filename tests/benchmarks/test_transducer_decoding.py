"""The benchmark of transducers decodes by both searches, and compares their texts."""

import json
import subprocess
import sys
from pathlib import Path

import soundfile

from tests.fixtures import streams

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks/transducer_decoding.py"


def test_it_times_both_on_the_same_utterances(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams.make(tmp_path, variants=("merged",))
    lines = []
    for seed, seconds in enumerate((1.0, 2.2, 1.4)):
        path = tmp_path / f"{seed}.wav"
        soundfile.write(path, streams.wave(seconds, seed), streams.RATE)
        lines.append(f"u{seed} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    words = ["exp/tiny/deploy/merged", "wav.scp", "--repeats", "2", "--json", "found.json"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["measured"]
    assert (found["utterances"], found["audio_seconds"]) == (3, 4.6)
    assert all(len(found[key]) == len(found["search"][key]) == 2 for key in ("espnet", "ours"))
    assert found["tokens_per_second"] > 0

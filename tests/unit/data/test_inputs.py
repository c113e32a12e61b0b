"""Headers of audio, by one process and by several."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.data import inputs
from espnet_ext.errors import UserError

RATE = 16000


@pytest.mark.parametrize("chunk", [3, 10_000])  # several processes, one
def test_the_first_fault_is_named(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(inputs, "CHUNK", chunk)
    samples = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        rows.append((f"u{number}", str(path)))
    inputs.check_headers(Path("wav.scp"), rows, RATE)
    soundfile.write(rows[10][1], samples, 8000, subtype="PCM_16")
    with pytest.raises(UserError, match=r"wav.scp: u10: .* has 8000 Hz, the config says 16000 Hz"):
        inputs.check_headers(Path("wav.scp"), rows, RATE)
    Path(rows[7][1]).unlink()
    with pytest.raises(UserError, match=r"wav.scp: u7: no audio file"):
        inputs.check_headers(Path("wav.scp"), rows, RATE)

"""Figures that are kept: one for each model, search and number of threads."""

from types import SimpleNamespace

import torch

from espnet_ext.bridge.decoding import real_time_factor


def test_another_beam_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    bundle = SimpleNamespace(path=weights, member=None)
    measured = []

    def measure(decoder):
        measured.append((decoder.method, decoder.beam_size, torch.get_num_threads()))
        return 0.1 * decoder.beam_size

    def factor(method, beam):
        decoder = SimpleNamespace(method=method, beam_size=beam, device="cpu")
        return real_time_factor.real_time_factor(bundle, decoder)

    monkeypatch.setattr(real_time_factor, "measure", measure)
    asked = [("attention_beam", 1), ("attention_beam", 5), ("ctc_greedy", 5)]
    found = [factor(*words) for words in asked]
    assert found == [0.1, 0.5, 0.5] and len(set(measured)) == 3
    before = len(measured)
    assert [factor(*words) for words in asked] == found and len(measured) == before
    weights.write_bytes(b"others")
    factor("ctc_greedy", 5)
    assert len(measured) > before

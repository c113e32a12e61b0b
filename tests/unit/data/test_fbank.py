"""The Kaldi-definition log-mel against the definition, written here in numpy and float64."""

import math

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch

from espnet_ext.data.fbank import kaldi_fbank as fbank
from espnet_ext.data.features import DEFINITIONS
from espnet_ext.encoders.frontends import KaldiFbank
from espnet_ext.errors import UserError
from tests.fixtures import streams

FS, SHIFT, WIDTH, FFT = 16000, 160, 400, 512


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Noise with a tone and an offset, in [-1, 1], float32."""
    rng = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / FS)
    return (0.1 * rng.standard_normal(samples) + tone + 0.05).clip(-1, 1).astype(np.float32)


def mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def filters(bins: int, low: float = 20, high: float = FS / 2 - 400) -> np.ndarray:
    """Triangles that are linear in mel, (bins, 257); Kaldi leaves the bin of fs/2 out."""
    bank = np.zeros((bins, FFT // 2 + 1))
    step = (mel(high) - mel(low)) / (bins + 1)
    for b in range(bins):
        left, centre, right = (mel(low) + (b + k) * step for k in range(3))
        for k in range(FFT // 2):
            at = mel(k * FS / FFT)
            if left < at < right:
                bank[b, k] = min((at - left) / (centre - left), (right - at) / (right - centre))
    return bank


def definition(wave: np.ndarray, bins: int = 80) -> np.ndarray:
    """Kaldi's compute-fbank-feats with snip_edges=false, dither=0, high_freq=-400."""
    wave = wave.astype(np.float64)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WIDTH) / (WIDTH - 1))) ** 0.85  # Povey
    rows = []
    for frame in range((len(wave) + SHIFT // 2) // SHIFT):
        start = frame * SHIFT + SHIFT // 2 - WIDTH // 2
        index = np.arange(start, start + WIDTH)
        while ((index < 0) | (index >= len(wave))).any():  # reflect, the edge sample doubled
            index = np.where(index < 0, -index - 1, index)
            index = np.where(index >= len(wave), 2 * len(wave) - 1 - index, index)
        x = wave[index]
        x = x - x.mean()
        x = np.concatenate([x[:1] - 0.97 * x[:1], x[1:] - 0.97 * x[:-1]])  # pre-emphasis
        power = np.abs(np.fft.rfft(x * window, FFT)) ** 2
        rows.append(np.log(np.maximum(filters(bins) @ power, np.finfo(np.float32).eps)))
    return np.array(rows)


@pytest.mark.parametrize("samples", [400, 1601, 8000])
def test_equals_the_definition(samples):
    """float32 against float64.

    A 512-point FFT in float32 errs by about 1e-7 of the frame's largest amplitude; where a mel
    band is 60 dB below it (1e-3), that is 1e-4 of the band, and as much in its logarithm.
    """
    wave = noise(samples)
    got = fbank(torch.from_numpy(wave)).numpy()
    wanted = definition(wave)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-4)
    assert np.abs(got - wanted).mean() < 5e-5
    assert wanted.std() > 0.5


def test_other_numbers_of_bins():
    wave = noise(3200)
    got = fbank(torch.from_numpy(wave), n_mels=40).numpy()
    np.testing.assert_allclose(got, definition(wave, 40), rtol=0, atol=3e-4)
    assert KaldiFbank(n_mels=40).output_size() == got.shape[1] == 40


@pytest.mark.parametrize("bins", [80, 26])
@pytest.mark.parametrize("samples", [400, 1601, 8000])
def test_the_other_definition_is_that_of_sherpa_onnx(samples, bins):
    """Its own library computes them, with the options that it sets for models of NeMo."""
    wave = noise(samples)
    options = knf.FbankOptions()
    frames, filters = options.frame_opts, options.mel_opts
    frames.dither, frames.snip_edges, frames.remove_dc_offset = 0, False, False
    frames.window_type, frames.samp_freq = "hann", FS
    filters.num_bins, filters.low_freq, filters.high_freq = bins, 0, FS / 2
    filters.is_librosa = True
    online = knf.OnlineFbank(options)
    online.accept_waveform(FS, wave.tolist())
    online.input_finished()
    wanted = np.array([online.get_frame(k) for k in range(online.num_frames_ready)])
    frontend = KaldiFbank(n_mels=bins, definition="nemo")
    got, lengths = frontend(torch.from_numpy(wave)[None], torch.tensor([samples]))
    assert lengths.tolist() == [len(wanted)]
    np.testing.assert_allclose(got[0].numpy(), wanted, rtol=0, atol=3e-4)
    kaldis = fbank(torch.from_numpy(wave), n_mels=bins).numpy()
    assert np.abs(kaldis - wanted).max() > 0.5


def test_unknown_definitions_are_refused():
    with pytest.raises(UserError, match="definition must be kaldi or nemo, not 'htk'"):
        KaldiFbank(definition="htk")


@pytest.mark.parametrize("samples", [400, 479, 480, 559, 560, 16000, 16079, 16080, 12345])
def test_frames_are_one_every_ten_milliseconds(samples):
    """snip_edges=False: the length over the shift, rounded, whatever the window's width."""
    assert len(fbank(torch.zeros(samples))) == math.floor(samples / SHIFT + 0.5)


def test_silence_is_finite():
    assert torch.equal(
        fbank(torch.zeros(1600)), torch.full((10, 80), math.log(torch.finfo(torch.float32).eps))
    )


def test_batch_equals_each_alone():
    waves = [torch.from_numpy(noise(n, seed=n)) for n in (8000, 400, 5123)]
    lengths = torch.tensor([len(w) for w in waves])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    frontend = KaldiFbank()
    clean, frames = frontend(batch, lengths)
    assert frames.tolist() == [50, 3, 32]
    assert clean.shape == (3, 50, 80)
    for row, wave in enumerate(waves):
        assert torch.equal(clean[row, : frames[row]], fbank(wave))
        batch[row, lengths[row] :] = 0.7  # whatever is in the padding
    assert torch.equal(frontend(batch, lengths)[0], clean)
    assert not list(frontend.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frontend(batch, lengths)[0], clean)


@pytest.mark.parametrize("samples", [0, 1, 79, 399])
def test_less_than_one_window_is_refused(samples):
    """25 ms is the least: an error, not frames made of reflections (nor an empty matrix)."""
    with pytest.raises((AssertionError, UserError)):
        fbank(torch.zeros(samples))


@pytest.mark.parametrize("seconds", [0.025, 0.0312, 0.16, 1.0, 1.2345])
@pytest.mark.parametrize("size", [37, 80, 400, 2560, 100000])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_online_features_are_the_offline_ones(seconds, size, definition):
    import torch

    from espnet_ext.data.fbank import OnlineFbank, log_mel

    samples = torch.from_numpy(streams.wave(seconds))
    online = OnlineFbank(streams.RATE, 40, definition)
    parts = [online.accept(piece) for piece in samples.split(size)] + [online.finish()]
    expected = log_mel(samples, streams.RATE, 40, 0, definition)
    found = torch.cat(parts)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4  # of values of order 10

"""Long speech is cut at pauses, and nothing of it is lost."""

import numpy as np
import pytest

from espnet_ext.data.pauses import cut_at_pauses

RATE = 16000


def speech(seconds: float, *pauses: float) -> np.ndarray:
    """Noise with half a second of near silence around each of ``pauses``."""
    wave = np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)
    for place in pauses:
        wave[round((place - 0.25) * RATE) : round((place + 0.25) * RATE)] *= 0.01
    return wave


def test_short_speech_is_one_piece():
    wave = speech(30)
    (found,) = cut_at_pauses(wave, 30 * RATE, RATE)
    assert found is wave


@pytest.mark.parametrize("seconds", [30.01, 31, 59, 61, 95])
def test_the_pieces_are_the_whole_and_none_is_too_long_or_too_short(seconds):
    wave = speech(seconds, 20, 29.5, 45)
    found = cut_at_pauses(wave, 30 * RATE, RATE)
    np.testing.assert_array_equal(np.concatenate(found), wave)
    assert all(RATE <= len(piece) <= 30 * RATE for piece in found)


def test_it_is_cut_in_the_pauses():
    found = cut_at_pauses(speech(70, 5, 22, 47), 30 * RATE, RATE)
    places = np.cumsum([len(piece) for piece in found])[:-1] / RATE
    np.testing.assert_allclose(places, [22, 47], atol=0.2)


def test_of_silence_the_pieces_are_long():
    found = cut_at_pauses(np.zeros(100 * RATE, np.float32), 30 * RATE, RATE)
    assert [len(piece) // RATE for piece in found] == [29, 29, 29, 10]

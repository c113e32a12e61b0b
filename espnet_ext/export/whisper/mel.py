"""Whisper's log-mel as a graph."""

from pathlib import Path

import numpy as np

from espnet_ext.export.graphs.graph import FLOAT, Graph

_FFT, _HOP = 400, 160  # samples of a window of log-mel, and between windows


def write_log_mel(path: Path, filters: np.ndarray, least: int, frames_first: bool = False) -> None:
    """Write log-mel as transformers' WhisperFeatureExtractor computes it, of speech as it is.

    Args:
        path: of the graph.
        filters: of mel (frequencies, bins).
        least: samples that shorter speech is padded to with silence.
        frames_first: the output is ``x`` (1, time, bins), else ``mel`` (1, bins, time).
    """
    g = Graph()
    samples = g.op("Shape", "audio", start=1, end=2)
    missing = g.op("Max", g.op("Sub", g.ints(least), samples), g.ints(0))
    x = g.op("Pad", "audio", g.op("Concat", g.ints(0, 0, 0), missing, axis=0))
    x = g.op("Pad", x, g.ints(0, _FFT // 2, 0, _FFT // 2), mode="reflect")
    basis = _fourier_basis(g)
    x = g.op("Conv", g.op("Unsqueeze", x, g.ints(1)), basis, kernel_shape=[_FFT], strides=[_HOP])
    x = g.slice(x, g.ints(0), g.ints(-1), 2)  # the extractor leaves out the last window
    real, imaginary = g.split(g.op("Mul", x, x), 2, 1)
    power = g.op("Add", real, imaginary)
    mel = g.op("MatMul", g.constant(filters.T, np.float32), power)
    floor = g.constant(1e-10, np.float32)
    logarithm = g.op("Log", g.op("Max", mel, floor))
    logarithm = g.op("Mul", logarithm, g.constant(1 / np.log(10), np.float32))
    loudest = g.op("ReduceMax", logarithm, keepdims=0)
    quiet = g.op("Sub", loudest, g.constant(8, np.float32))
    shifted = g.op("Add", g.op("Max", logarithm, quiet), g.constant(4, np.float32))
    bins, out = filters.shape[1], "x" if frames_first else "mel"
    scaled = g.op("Mul", shifted, g.constant(0.25, np.float32))
    order = [0, 2, 1] if frames_first else [0, 1, 2]
    g.op("Transpose", scaled, perm=order, out=out)
    shape = [1, "time", bins] if frames_first else [1, bins, "time"]
    g.save(path, {"audio": (FLOAT, [1, "samples"])}, {out: (FLOAT, shape)})


def _fourier_basis(g: Graph) -> str:
    """Windowed cosines and sines (2 x frequencies, 1, samples), computed from nothing."""

    def numbers(count: int) -> str:
        return g.op("Range", *(g.constant(v, np.int64) for v in (0, count, 1)))

    turn = g.constant(2 * np.pi / _FFT, np.float32)
    frequency, time = numbers(_FFT // 2 + 1), numbers(_FFT)
    half = g.constant(0.5, np.float32)
    wave = g.op("Cos", g.op("Mul", g.op("Cast", time, to=FLOAT), turn))
    window = g.op("Sub", half, g.op("Mul", half, wave))
    product = g.op(
        "Mul", g.op("Unsqueeze", frequency, g.ints(1)), g.op("Unsqueeze", time, g.ints(0))
    )
    turns = g.op("Mod", product, g.constant(_FFT, np.int64))  # exact where float32 is not
    angle = g.op("Mul", g.op("Cast", turns, to=FLOAT), turn)
    both = g.op("Concat", g.op("Cos", angle), g.op("Sin", angle), axis=0)
    return g.op("Reshape", g.op("Mul", both, window), g.ints(_FFT + 2, 1, _FFT))

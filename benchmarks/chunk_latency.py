#!/usr/bin/env python
"""Time a chunk of streaming transducers: exported graphs by two runtimes, and torch, in turns.

Each deployed folder is exported, without a comparison of texts, and one thread decodes speech piece
by piece, features and search included: by the exported folder's transcribe.py (ONNX Runtime), by
sherpa-onnx, and by torch. "encoder" and "token" are graphs alone, in ONNX Runtime. The systems of
all models take turns, ten chunks each, so most chunks find the caches warm; times are processor
time, medians over all chunks.

Blanks are made certain, so that all search alike: a chunk with tokens takes the time of "token"
more for each. So a model can be timed before it is trained, too: max_epoch: 0 in its config.

Needs pip install 'espnet-ext[device,export]'.

Example, in egs/fotaq/asr1:
    python ../../../benchmarks/chunk_latency.py speech.wav exp/stream_paper/deploy/merged \
exp/residual_stream_paper_k3/deploy/shared --bits 8
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.data.audio import read_wave
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.results.benchmarks import finish, median_range
from espnet_ext.stages.export import RUNTIMES

SYSTEMS = ("encoder", "token", "onnx", "sherpa", "torch")
_CERTAIN = 1e4  # added to the score of the blank
_TURN = 10  # chunks: with one, each would find the caches full of another system's weights

type Step = Callable[[np.ndarray], Any]


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audio", type=Path, help="speech of the models' rate")
    parser.add_argument("models", type=Path, nargs="+", help="deployed folders")
    parser.add_argument("--bits", type=int, choices=[32, 8, 4], help="of models at 32 bits")
    parser.add_argument("--runtime", choices=RUNTIMES, default="sherpa", help="as of export")
    parser.add_argument("--chunks", type=at_least(20), default=300, help="(default: 300)")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    args = parser.parse_args()
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

    torch.set_num_threads(1)
    found = measure(args)
    measured = {"chunks": args.chunks, "bits": args.bits, "threads": 1, "results": found}
    finish(table(measured), measured, args.json)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the chunks of all models; times in seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = [
            prepared(model, args, Path(scratch, str(place)))
            for place, model in enumerate(args.models)
        ]
        for found, _, systems in ready:
            found["times"] = {name: [] for name in systems}
        take_turns(
            [
                (step, pieces, found["times"][name])
                for found, pieces, systems in ready
                for name, step in systems.items()
            ]
        )
    return [found for found, _, _ in ready]


def prepared(
    model: Path, args: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], np.ndarray, dict[str, Step]]:
    """Export a model into a folder; what is known of it, speech in pieces, and its systems."""
    from espnet_ext.bridge.decoding.loading import decoder_of
    from espnet_ext.bridge.deployed.bundle import Bundle
    from espnet_ext.export.contracts.kinds import contract_of, is_transducer
    from espnet_ext.export.folder import write

    bundle = Bundle.of_folder(model)
    if not is_transducer(bundle):
        raise UserError(f"{model}: not a transducer")
    decoder = decoder_of(bundle, "transducer_greedy")
    make_blanks_certain(decoder.model)
    contract = contract_of(bundle, decoder, args.bits)
    wave = read_wave(str(args.audio), args.audio.name, decoder.rate)
    folder.mkdir()
    write(contract, decoder.rate, folder, RUNTIMES[args.runtime])
    systems = {
        "encoder": encoder(folder),
        "token": token(folder),
        "onnx": onnx(folder),
        "torch": torch_stream(bundle),
    }
    settings = contract.settings()
    if settings.get("sherpa_onnx") and importlib.util.find_spec("sherpa_onnx"):
        systems["sherpa"] = sherpa(folder, decoder.rate)
    known = {
        "model": str(model),
        "parameters": sum(p.numel() for p in decoder.model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.onnx")),
        "chunk_ms": 10 * settings["shift"],
    }
    size = decoder.rate * settings["shift"] // 100
    return known, np.resize(wave, (_TURN + args.chunks, size)), systems


def take_turns(runs: Sequence[tuple[Step, np.ndarray, list[float]]]) -> None:
    """Append the processor time of each step for each of its pieces of speech to its list.

    The first turn warms up, and fills the look-ahead; it is not counted.
    """
    longest = max(len(pieces) for _, pieces, _ in runs)
    for turn in range(0, longest, _TURN):
        first = turn // _TURN % len(runs)
        for step, pieces, times in (*runs[first:], *runs[:first]):
            for piece in pieces[turn : turn + _TURN]:
                start = time.process_time()
                step(piece)
                if turn:
                    times.append(round(time.process_time() - start, 7))


def encoder(folder: Path) -> Step:
    """The encoder's graph alone; it computes the same whatever it hears."""
    from espnet_ext.export.runtime.run_onnx import Model, Stream

    model = Model(folder)
    stream, settings = Stream(model), model.settings
    window = np.zeros((1, settings["bins"], settings["window"]), np.float32)
    length = np.array([settings["window"]], np.int64)
    return lambda _: model.run("encoder", window, length, *stream.caches)


def token(folder: Path) -> Step:
    """The predictor's graph alone."""
    from espnet_ext.export.runtime.run_onnx import Model, Stream

    stream = Stream(Model(folder))
    return lambda _: stream.feed(0)


def onnx(folder: Path) -> Step:
    """transcribe.py's stream."""
    from espnet_ext.export.runtime.run_onnx import Model, Stream

    return Stream(Model(folder)).accept


def sherpa(folder: Path, rate: int) -> Step:
    """sherpa-onnx's."""
    import sherpa_onnx

    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
        **{name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        num_threads=1,
    )
    stream = recogniser.create_stream()

    def step(piece: np.ndarray) -> None:
        stream.accept_waveform(rate, piece)
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)

    return step


def make_blanks_certain(model: Any) -> None:
    """Let a transducer find no token."""
    model.joint_network.lin_out.bias.data[model.blank_id] += _CERTAIN


def torch_stream(bundle: Any) -> Step:
    """The deployed model's."""
    from espnet_ext.bridge.streaming.latency import Timing
    from espnet_ext.bridge.streaming.streamers import streamer_of

    streamer = streamer_of(bundle, "transducer_greedy")
    make_blanks_certain(streamer.decoder.model)
    stream = streamer.start(Timing())  # type: ignore[union-attr]
    return lambda piece: streamer.accept(piece, False, stream)  # type: ignore[union-attr]


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    rows = []
    for row in measured["results"]:
        cells = [row["model"], f"{row['parameters']:,}", f"{row['bytes'] / 1e6:.2f}"]
        cells.append(str(row["chunk_ms"]))
        for name in SYSTEMS:
            times = [1000 * seconds for seconds in row["times"].get(name, ())]
            cells.append(median_range(times, 2) if times else "not there, or other features")
        rows.append(cells)
    bits = measured["bits"]
    return {
        "title": "A chunk of streaming transducers",
        "about": "Milliseconds of one thread for a chunk of speech: median (range). The encoder is "
        "its graph alone; so is a token, which comes on top for each that is found. The others "
        "compute features, encoder and joiner. A chunk is encoded together with its look-ahead. "
        f"Systems of all models take turns, {_TURN} chunks each.",
        "header": ["model", "params", "MB", "chunk, ms"] + [f"{name}, ms" for name in SYSTEMS],
        "rows": rows,
        "notes": [
            f"{measured['chunks']} chunks, {measured['threads']} thread"
            + (f", graphs of {bits} bits." if bits else ".")
        ],
        "measured": measured,
    }


if __name__ == "__main__":
    sys.exit(run_cli("chunk_latency.py", main))

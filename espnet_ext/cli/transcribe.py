"""Transcribe audio files with a deployed model: text, times, confidences.

MODEL is a folder that stage 5 wrote (exp/<tag>/deploy/<variant>), a file of weights in it, a family
file, the folder of several variants (of which --max-bytes and --max-rtf use the best that fits), a
folder that "espnet-ext export" wrote (of a family, --variant or --max-bytes chooses the member),
or a training config in its recipe's folder. No other file of the recipe is needed: the folder can
be moved. A translator prints translations, a classifier classes.

Audio of any rate, number of channels and format that libsndfile reads; long recordings are cut at
pauses. "-" is standard input, mono 16-bit PCM of the model's rate, raw or WAV. With one file its
text is printed, with several each line begins with the file and a tab. --json prints a line of
JSON for a file: text, seconds, and segments with start, end, confidence and words.

--stream prints the text of a streaming model while it is heard, as "espnet-ext stream" does, also
that of an exported transducer.

Example:
  espnet-ext transcribe exp/nested_whisper_tiny_m/deploy/4L-1536-4b speech.flac
  espnet-ext transcribe exp/nested_whisper_tiny_m/deploy --max-bytes 16M --json *.wav
  arecord -q -f S16_LE -r 16000 | espnet-ext transcribe MODEL --stream -
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import humanfriendly
import numpy as np
from tqdm import tqdm

from espnet_ext.cli.model import add_model, is_exported, model_folder, open_recogniser
from espnet_ext.data.audio import read_stretch, resampled, seconds_of
from espnet_ext.data.audio_stream import STDIN, pieces
from espnet_ext.errors import UserError
from espnet_ext.export.runtime.decoder import refuse_options

_SHOWN = 60  # seconds of audio whose progress is shown


def size(word: str) -> int:
    """Type for argparse: bytes, as 16000000, 16M or 16MiB."""
    try:
        return humanfriendly.parse_size(word)
    except humanfriendly.InvalidSize:
        raise argparse.ArgumentTypeError(f"needs bytes, as 16M or 16MiB, not {word!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_model(parser)
    parser.add_argument("audio", nargs="+", help=f"audio files, or {STDIN} for standard input")
    parser.add_argument("--max-bytes", type=size, help="the largest variant that fits, as 16M")
    parser.add_argument("--max-rtf", type=float, help="real-time factor here, measured once")
    parser.add_argument("--json", action="store_true", help="a line of JSON for a file")
    parser.add_argument("--stream", action="store_true", help="print partial texts")


def run(args: argparse.Namespace) -> None:
    """Transcribe every file."""
    model = model_folder(args.model, args.variant)
    for path in args.audio:
        if path != STDIN and not Path(path).is_file():
            raise UserError(f"no audio file {path}; '{STDIN}' is standard input")
    if args.stream:
        _stream(_streamer(args, model), args)
        return
    recogniser = open_recogniser(args, model, args.max_bytes, args.max_rtf)
    for path in args.audio:
        found = _found(recogniser, path)
        if args.json:
            print(json.dumps({"file": path, **found}, ensure_ascii=False), flush=True)
        else:
            name = f"{path}\t" if len(args.audio) > 1 else ""
            print(f"{name}{found['text']}", flush=True)


def _streamer(args: argparse.Namespace, model: Path) -> Any:
    """The model as one that hears chunks."""
    if args.beam is not None:
        raise UserError("a stream is searched greedily: leave out --beam")
    if is_exported(model):
        refuse_options(model, args.device, args.method, args.max_rtf)
        from espnet_ext.export.runtime.stream import OnnxStreamer

        return OnnxStreamer(model, args.threads, args.variant, args.max_bytes)
    if args.device != "cpu" or args.max_rtf is not None:
        raise UserError("a stream is searched on the CPU: leave out --device and --max-rtf")
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

        from espnet_ext.bridge.deployed.bundle import open_bundle
        from espnet_ext.bridge.streaming.streamers import streamer_of
    torch.set_num_threads(args.threads)
    return streamer_of(open_bundle(model, args.max_bytes), args.method)


def _found(recogniser: Any, path: str) -> dict[str, Any]:
    """The transcript of a file, or of standard input until its end."""
    if path != STDIN:
        seconds = seconds_of(Path(path), Path(path).name)
        # Only on a terminal, and only for long files.
        quiet = None if seconds > _SHOWN else True
        with tqdm(total=round(seconds), desc=Path(path).name, unit="s", disable=quiet) as bar:
            advance = lambda segment: bar.update(round(segment.end) - bar.n)  # noqa: E731
            return recogniser.file(path, advance).as_dict()
    rate = recogniser.rate
    heard = [np.zeros(0, np.float32), *pieces(STDIN, rate, rate)]
    return recogniser(np.concatenate(heard), rate).as_dict()


def _stream(streamer: Any, args: argparse.Namespace) -> None:
    """Print texts as they are heard; the finished segments of a file are its text."""
    from espnet_ext.bridge.streaming.latency import Timing

    for path in args.audio:
        name, timing = {"file": path} if len(args.audio) > 1 else {}, Timing()
        for partial in streamer.run(_heard(path, streamer), timing):
            found = {**name, **partial._asdict(), "second": round(partial.second, 3)}
            line = json.dumps(found, ensure_ascii=False) if args.json else partial.line()
            print(line, flush=True)
        for doubt in streamer.doubts(timing):
            print(f"espnet-ext transcribe: warning: {path}: {doubt}", file=sys.stderr)


def _heard(path: str, streamer: Any) -> Iterator[np.ndarray]:
    """The chunks of a file of any rate, or of standard input."""
    if path == STDIN:
        return pieces(STDIN, streamer.rate, streamer.piece)
    samples, rate = read_stretch(Path(path), Path(path).name)
    wave = resampled(samples, rate, streamer.rate)
    return (wave[k : k + streamer.piece] for k in range(0, len(wave), streamer.piece))

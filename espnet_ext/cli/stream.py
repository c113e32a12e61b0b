"""Decode a file or standard input chunk by chunk with a deployed model that streams.

Prints a line, second of audio and text, whenever the text changes:

      12.80 s  and so my fellow        may still change
      13.12 s | and so my fellow       a finished segment; what follows begins another

A Whisper with chunks is searched anew with every chunk; where the speaker pauses for 0.6 s, or
after 25 s, the segment ends and is searched once more as a whole: the second pass.

Of a transducer a segment has at most 100 tokens (the last up to 200), and ends between words where
there are blanks. The texts after "s | ", one after another, are the result: the blank between two
segments begins the second.

Then figures of latency, on one thread unless --threads says otherwise: processing time of a
chunk, time from the start of the audio to the first text, time from a token's frame until it was
certain, real-time factor; percentiles are within 1 %. Memory does not grow with the length of
the stream, except for --json, which needs the whole text. Standard input is mono 16-bit PCM,
raw or WAV.

Example:
  espnet-ext stream conf/residual/train_residual_stream_xs_k3.yaml speech.flac
  arecord -q -f S16_LE -r 16000 | espnet-ext stream conf/residual/train_residual_stream_xs_k3.yaml -
"""

import argparse
import json
import sys
from pathlib import Path

from espnet_ext.bridge.muted import muted
from espnet_ext.config.decoding import ATTENTION_GREEDY, TRANSDUCER
from espnet_ext.data.audio_stream import STDIN, pieces
from espnet_ext.errors import UserError, at_least
from espnet_ext.experiment import Experiment
from espnet_ext.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("audio", help=f"audio file, or {STDIN} for standard input")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument("--variant", help="variant of the model; default: recipe: variant")
    parser.add_argument("--method", choices=TRANSDUCER, help="default: the config's first of these")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads")
    parser.add_argument("--json", metavar="FILE", help="write figures and the whole text here too")


def run(args: argparse.Namespace) -> None:
    """Stream once."""
    if Path(args.config).is_dir():
        raise UserError(f"{args.config} is a folder; use espnet-ext transcribe --stream for it")
    experiment = Experiment.load(args.config, args.tag, args.variant)
    if experiment.deltas:
        raise UserError(
            f"{experiment.config.path}: frontend_conf: deltas cannot stream; train without them"
        )
    folder = experiment.require_deployed()
    with muted():
        import torch

        from espnet_ext.bridge.deployed.bundle import Bundle
        from espnet_ext.bridge.streaming.latency import Timing
        from espnet_ext.bridge.streaming.streamers import method_of, streamer_of

        torch.set_num_threads(args.threads)
        bundle = Bundle.of_folder(folder)
        streamer, method = streamer_of(bundle, args.method), method_of(bundle, args.method)
    timing = Timing()
    segments: list[str] = []
    for partial in streamer.run(pieces(args.audio, streamer.rate, streamer.piece), timing):
        print(partial.line(), flush=True)
        if partial.finished and args.json:
            segments.append(partial.text)
    for doubt in streamer.doubts(timing):
        print(f"espnet-ext stream: warning: {args.audio}: {doubt}", file=sys.stderr)
    figures = {"method": method, "threads": args.threads, **timing.summary()}
    if args.json:
        text = (" " if method == ATTENTION_GREEDY else "").join(segments)
        write_json(args.json, {"text": text, **figures})
    print(json.dumps(figures))

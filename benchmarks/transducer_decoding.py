#!/usr/bin/env python
"""Time greedy decoding of a set: ESPnet's transducer inference, and ours in batches.

Both decode the same deployed model in this process, taking turns; the texts must be equal.
ESPnet's is what its ``Speech2Text`` does with a beam of 1: one utterance after another.

Example:
    cd egs/fotaq/asr1
    python ../../../benchmarks/transducer_decoding.py exp/stream_xs/deploy/merged \
        data/test/wav.scp --batch 16 --json speed.json
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, run_cli
from espnet_ext.results.benchmarks import finish, median_range


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the deployed model")
    parser.add_argument("scp", type=Path, help="wav.scp")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--utterances", type=int, default=64, help="(default: 64)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    from espnet_ext.bridge.muted import muted

    with muted():
        measured = measure(args)
    finish(table(measured), measured, args.json)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    alone = [statistics.median(measured["search"][key]) for key in ("espnet", "ours")]
    header = ["utterances", "batch", "ESPnet, s (range)", "ours", "ratio of medians"]
    return {
        "title": "Decoding a set with a transducer",
        "about": "Greedy, ESPnet's inference one utterance after another, and ours in "
        "batches, taking turns in one process; the texts are equal.",
        "header": [*header, "of the search alone"],
        "rows": [
            [
                f"{measured['utterances']} ({measured['audio_seconds']:.0f} s)",
                str(measured["batch"]),
                *(median_range(measured[key], 2) for key in ("espnet", "ours")),
                f"{measured['ratio']:.2f}",
                f"{alone[0] / alone[1]:.2f}",
            ]
        ],
        "notes": [
            f"Threads {measured['threads']}; {measured['tokens_per_second']:.2f} tokens a second."
        ],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Decode ``repeats`` times by each; the first round of each warms up.

    Raises:
        UserError: the texts differ.
    """
    import torch

    from espnet_ext.bridge.decoding.loading import decoder_of
    from espnet_ext.bridge.deployed.bundle import Bundle

    torch.set_num_threads(args.threads)
    decoder = decoder_of(Bundle.of_folder(args.model), "transducer_greedy")
    speech2text = decoder.inference
    rows = list(read_table(args.scp).items())[: args.utterances]
    read = sorted((decoder.read(row) for row in rows), key=lambda found: -found[1])
    inputs = [speech for speech, _ in read]

    def espnet() -> list[str]:
        return [speech2text(feats)[0][0] or "" for feats in inputs]

    def ours() -> list[str]:
        batches = (inputs[k : k + args.batch] for k in range(0, len(inputs), args.batch))
        return [text for batch in batches for text in decoder.texts(batch)]

    times: dict[str, list[float]] = {"espnet": [], "ours": []}
    texts = {}
    for round_ in range(args.repeats + 1):
        for function in (espnet, ours):
            start = time.perf_counter()
            texts[function.__name__] = function()
            if round_:
                times[function.__name__].append(time.perf_counter() - start)
    if texts["espnet"] != texts["ours"]:
        raise UserError("the texts differ: this is no comparison")
    audio = sum(seconds for _, seconds in read)
    tokens = sum(len(speech2text.tokenizer.text2tokens(text)) for text in texts["ours"])
    return {
        **times,
        "ratio": statistics.median(times["espnet"]) / statistics.median(times["ours"]),
        "audio_seconds": audio,
        "utterances": len(inputs),
        "tokens_per_second": tokens / audio,
        "search": search_times(args, speech2text, decoder.search, inputs),
        "batch": args.batch,
        "threads": args.threads,
    }


def search_times(
    args: argparse.Namespace, speech2text: Any, search: Any, inputs: list
) -> dict[str, list[float]]:
    """Time the searches alone, on frames that are encoded already."""
    import torch

    times: dict[str, list[float]] = {"espnet": [], "ours": []}
    batches = []
    with torch.no_grad():
        for start in range(0, len(inputs), args.batch):
            feats = [torch.from_numpy(x) for x in inputs[start : start + args.batch]]
            padded = torch.nn.utils.rnn.pad_sequence(feats, batch_first=True)
            lengths = torch.tensor([len(x) for x in feats])
            batches.append(speech2text.asr_model.encode(padded, lengths))
        for _ in range(args.repeats + 1):
            start_time = time.perf_counter()
            for encoded, lengths in batches:
                for row, length in zip(encoded, lengths.tolist(), strict=True):
                    speech2text.beam_search_transducer(row[:length])
            times["espnet"].append(time.perf_counter() - start_time)
            start_time = time.perf_counter()
            for encoded, lengths in batches:
                search.results(search.advance(encoded, lengths, search.start(len(lengths))))
            times["ours"].append(time.perf_counter() - start_time)
    return {name: found[1:] for name, found in times.items()}


if __name__ == "__main__":
    sys.exit(run_cli("transducer_decoding.py", main))

#!/usr/bin/env python
"""Compare exported models with what one would take instead: time, memory, bytes, WER.

Each system is a process of one thread. They take turns: all decode the same utterance before the
next. Time is processor time over seconds of audio; memory is the peak (VmHWM), and what is held
after the last utterance (VmRSS), over the process with its libraries imported; load is processor
time until the model can decode.

A system is KIND:PATH.
  onnx:DIR            an exported folder, as espnet-ext runs it (ONNX Runtime); of a family in one
                      folder its best member, or as onnx:DIR#MEMBER
  sherpa:DIR          the same folder, by sherpa-onnx
  torch:DIR           a deployed folder, by torch
  onnx-stream:DIR     an exported transducer, chunk by chunk; sherpa:DIR does that too
  torch-stream:DIR    a deployed folder of a model that streams, chunk by chunk, by torch
Of a Whisper in transformers' format, as it was published, converted here (whisper_peers.py):
  faster-whisper:DIR  to int8 (CTranslate2)
  whisper.cpp:DIR     to 8 bits in blocks of 32 (q8_0)
  sherpa-whisper:DIR  to int8, as sherpa-onnx's script exports it, by sherpa-onnx
  onnxruntime:DIR     to graphs in float32, by ONNX Runtime
  openvino:DIR        the same graphs, by OpenVINO
A kind whose package is missing is said so: pip install 'espnet-ext[device]'. With --beam N onnx,
torch, faster-whisper and whisper.cpp search by a beam of Whisper; all others are greedy.

Run in a recipe's folder. What --json writes for published models is drawn, once it lies in
results/benchmarks/, next to that recipe's systems.

Example, in egs/fotaq/asr1:
    python ../../../benchmarks/device.py data/test onnx:exp/onnx sherpa:exp/onnx \
torch:exp/nested_whisper_tiny_m/deploy/4L-1536-4b faster-whisper:downloads/whisper_tiny.en
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from device_systems import LOADERS, RATE, WITH_BEAM

from espnet_ext.bridge.memory import peak_rss_mb, rss_mb
from espnet_ext.data.audio import read_wave
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.text import normalise_text
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.results.benchmarks import finish
from espnet_ext.results.run import recipe_names
from espnet_ext.score.significance.bootstrap import bootstrap_interval
from espnet_ext.score.wer import align_words

CHILD = "--system"
# Kinds of published models that whisper_peers converts, and to which files: two read the same.
PUBLISHED = {"whisper.cpp": "ggml", "sherpa-whisper": "int8"}
PUBLISHED |= dict.fromkeys(("onnxruntime", "openvino"), "float")
CONVERTED = "faster-whisper"


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="data directory with wav.scp and text")
    parser.add_argument("systems", nargs="+", help="KIND:PATH; the first is compared with others")
    parser.add_argument("--utterances", type=at_least(5), default=100, help="(default: 100)")
    parser.add_argument("--beam", type=at_least(1), default=1, help="(default: 1, greedy)")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    args = parser.parse_args()
    kinds = [system.partition(":")[0] for system in args.systems]
    for kind in kinds:
        if kind not in LOADERS:
            raise UserError(f"unknown kind {kind}; known are {', '.join(LOADERS)}")
    audio = read_table(args.data / "wav.scp")
    chosen = sorted(audio)[:: max(1, len(audio) // args.utterances)][: args.utterances]
    texts = read_table(args.data / "text")
    rows = [(name, audio[name], texts[name]) for name in chosen]
    systems = measure(args.systems, rows, args.beam)
    measured = {"utterances": len(rows), "threads": 1, "beam": args.beam, "systems": systems}
    measured |= {"recipe": "_".join(recipe_names(Path.cwd())), "set": args.data.name}
    finish(table(measured), measured, args.json)


def measure(
    systems: Sequence[str], rows: Sequence[tuple[str, str, str]], beam: int
) -> list[dict[str, Any]]:
    """Run all systems over utterances (name, audio, text), in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        made: dict[tuple[str, str], Path] = {}
        ready = [prepared(system, Path(scratch, str(k)), made) for k, system in enumerate(systems)]
        return _measure(systems, ready, rows, beam)


def _measure(
    systems: Sequence[str],
    ready: Sequence[str],
    rows: Sequence[tuple[str, str, str]],
    beam: int,
) -> list[dict[str, Any]]:
    children = [start(system, beam) for system in ready]
    found: list[dict[str, Any]] = []
    for system, one, child in zip(systems, ready, children, strict=True):
        published = system.partition(":")[0] in (*PUBLISHED, CONVERTED)
        about = {"system": system, "bytes": size_of(one), "published": published}
        found.append({**about, **answer(child)})
    running = [
        (child, one) for child, one in zip(children, found, strict=True) if "missing" not in one
    ]
    for _, one in running:
        one |= {"times": [], "texts": []}
    for place, (name, path, _) in enumerate(rows):
        turn = running[place % len(running) :] + running[: place % len(running)]
        for child, one in turn:
            print(json.dumps([name, path]), file=child.stdin, flush=True)
            said = answer(child)
            one["times"].append(said["time"])
            one["texts"].append(said["text"])
            one |= {name: said[name] for name in ("memory_mb", "held_mb")}
    for child in children:
        child.communicate()
    texts = [normalise_text(text) for *_, text in rows]
    for _, one in running:
        one["audio"] = sum(len(read_wave(path, name, RATE)) for name, path, _ in rows) / RATE
        errors = align_words(texts, [normalise_text(text) for text in one["texts"]]).errors
        one["wer"] = 100 * errors.rate
        interval = bootstrap_interval(errors.totals, errors.lengths) or (errors.rate, errors.rate)
        one["interval"] = [100 * end for end in interval]
        same = zip(one["texts"], running[0][1]["texts"], strict=True)
        one["same_texts"] = sum(text == other for text, other in same)  # as the first system
    for _, one in running:
        del one["texts"]  # a corpus's licence may not allow them in a committed file
    return found


def prepared(system: str, scratch: Path, made: dict[tuple[str, str], Path]) -> str:
    """The system with the path of what its process loads: of a published model converted files.

    ``made``: folders of converted models by their form and the model.
    """
    kind, _, path = system.partition(":")
    if kind in PUBLISHED:
        try:
            LOADERS[kind]()
            import whisper_peers  # with torch, which other systems need not hold
        except ImportError:
            return system  # its process says so
        if not Path(path, "model.safetensors").is_file():
            raise UserError(f"{system}: no model.safetensors; give a Whisper as published")
        form = PUBLISHED[kind]
        folder = made.setdefault((form, path), scratch)
        if not folder.exists():
            folder.mkdir()
            if form == "ggml":
                whisper_peers.write_ggml(path, folder / "ggml.bin")
            else:
                whisper_peers.write_graphs(path, folder, int8=form == "int8")
        return f"{kind}:{folder}"
    if kind != CONVERTED:
        return system
    code = (
        "import sys, ctranslate2\n"
        "files = ['tokenizer.json', 'preprocessor_config.json']\n"
        "made = ctranslate2.converters.TransformersConverter(sys.argv[1], copy_files=files)\n"
        "made.convert(sys.argv[2], quantization='int8')\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", code, path, str(scratch)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "ModuleNotFoundError" not in done.stderr:
        raise UserError(f"{system}: {done.stderr.strip().splitlines()[-1]}")
    return f"{kind}:{scratch}"


def start(system: str, beam: int) -> subprocess.Popen:
    """Start the process of a system."""
    words = [sys.executable, "-W", "ignore", __file__, CHILD, system, str(beam)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(words, **pipes, stderr=subprocess.DEVNULL, text=True, bufsize=1)


def answer(child: subprocess.Popen) -> dict[str, Any]:
    """The next line of a process."""
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise UserError(f"{child.args[-1]} ended: run it alone to see why")  # type: ignore[index]
    return json.loads(line)


def size_of(system: str) -> int:
    """Bytes of a model's files; tokens are left out, which each format has in its own way."""
    path = Path(system.partition(":")[2].partition("#")[0])
    kinds = (".onnx", ".safetensors", ".pth", ".bin")
    files = path.iterdir() if path.is_dir() else ()
    return sum(p.stat().st_size for p in files if p.suffix in kinds)


def child(system: str, beam: int) -> None:
    """Decode what standard input names; one line of JSON for the load and each utterance."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    kind, _, path = system.partition(":")
    try:
        load = LOADERS[kind]()
    except ImportError as error:
        print(json.dumps({"missing": str(error.name)}), file=out, flush=True)
        return
    before, begin = peak_rss_mb(), time.process_time()
    decode = load(path, beam) if kind in WITH_BEAM else load(path)
    decode(np.zeros(RATE, np.float32) + 1e-4)
    print(json.dumps({"load": time.process_time() - begin}), file=out, flush=True)
    for line in sys.stdin:
        name, audio = json.loads(line)
        wave = read_wave(audio, name, RATE)
        begin = time.process_time()
        text = decode(wave)
        seconds = time.process_time() - begin
        said = {"time": seconds, "text": text}
        said |= {"memory_mb": peak_rss_mb() - before, "held_mb": rss_mb() - before}
        print(json.dumps(said), file=out, flush=True)


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    rows = []
    first = None
    for one in measured["systems"]:
        kind, _, path = one["system"].partition(":")
        if "missing" in one:
            rows.append([kind, path, f"no package {one['missing']}", *[""] * 6])
            continue
        total = sum(one["times"])
        first = first or total
        rows.append(
            [kind, path, f"{total / one['audio']:.4f}", f"{total / first:.2f}"]
            + [f"{one['bytes'] / 1e6:.2f}", f"{one['memory_mb']:.0f}", f"{one['held_mb']:.0f}"]
            + [f"{one['load']:.2f}", f"{one['wer']:.1f}"]
        )
    return {
        "title": "Exported models compared",
        "about": "Systems take turns, an utterance each; one thread. Memory, the peak and what is "
        "held at the end, is that over the process with its libraries. Published models hear "
        "silence up to 30 s, as they need it, but for sherpa-onnx's; their texts are in lower case "
        "without punctuation here.",
        "header": ["by", "model", "CPU time / audio", "to the first", "MB", "peak, MB", "held, MB"]
        + ["load, s", "WER"],
        "rows": rows,
        "notes": [
            f"{measured['utterances']} utterances, 1 thread, a beam of {measured['beam']}. Where "
            "CPU time / audio is 0.01, a chunk of 160 ms takes 1.6 ms."
        ],
        "measured": measured,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(run_cli("device.py", main))

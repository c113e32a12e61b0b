#!/usr/bin/env python
"""Compare exported models with what one would take instead: time, memory, bytes, WER.

Each system is a process of one thread. They take turns: all decode the same utterance before the
next. Time is processor time over seconds of audio; memory is the peak (VmHWM) over that of the
process with its libraries imported; load is processor time until the model can decode.

A system is KIND:PATH.
  onnx:DIR            an exported folder, by its transcribe.py (ONNX Runtime)
  sherpa:DIR          the same folder, by sherpa-onnx
  torch:DIR           a deployed folder, by torch
  onnx-stream:DIR     an exported transducer, chunk by chunk; sherpa:DIR does that too
  torch-stream:DIR    a deployed folder of a model that streams, chunk by chunk, by torch
  faster-whisper:DIR  a Whisper in transformers' format, converted to int8 (CTranslate2)
A kind whose package is missing is said so: pip install 'espnet-ext[device]'.

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.data.audio import read_wave
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.files import read_json
from espnet_ext.results.benchmarks import finish

RATE = 16000
CHILD = "--system"


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="data directory with wav.scp and text")
    parser.add_argument("systems", nargs="+", help="KIND:PATH; the first is compared with others")
    parser.add_argument("--utterances", type=at_least(5), default=100, help="(default: 100)")
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
    measured = {"utterances": len(rows), "threads": 1, "systems": measure(args.systems, rows)}
    finish(table(measured), measured, args.json)


def measure(systems: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Run all systems over utterances (name, audio, text), in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = [prepared(system, Path(scratch, str(k))) for k, system in enumerate(systems)]
        return _measure(systems, ready, rows)


def _measure(
    systems: Sequence[str], ready: Sequence[str], rows: Sequence[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    children = [start(system) for system in ready]
    found: list[dict[str, Any]] = []
    for system, one, child in zip(systems, ready, children, strict=True):
        found.append({"system": system, "bytes": size_of(one), **answer(child)})
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
            one["memory_mb"] = said["memory_mb"]
    for child in children:
        child.communicate()
    import jiwer

    for _, one in running:
        one["audio"] = sum(len(read_wave(path, name, RATE)) for name, path, _ in rows) / RATE
        one["wer"] = 100 * jiwer.wer([text for *_, text in rows], [t.lower() for t in one["texts"]])
        same = zip(one["texts"], running[0][1]["texts"], strict=True)
        one["same_texts"] = sum(text == other for text, other in same)  # as the first system
    for _, one in running:
        del one["texts"]  # a corpus's licence may not allow them in a committed file
    return found


def prepared(system: str, scratch: Path) -> str:
    """The system with the path of what its process loads: of faster-whisper converted files."""
    kind, _, path = system.partition(":")
    if kind != "faster-whisper":
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


def start(system: str) -> subprocess.Popen:
    """Start the process of a system."""
    words = [sys.executable, "-W", "ignore", __file__, CHILD, system]
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
    path = Path(system.partition(":")[2])
    kinds = (".onnx", ".safetensors", ".pth", ".bin")
    files = path.iterdir() if path.is_dir() else ()
    return sum(p.stat().st_size for p in files if p.suffix in kinds)


def child(system: str) -> None:
    """Decode what standard input names; one line of JSON for the load and each utterance."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    kind, _, path = system.partition(":")
    try:
        load = LOADERS[kind]()
    except ImportError as error:
        print(json.dumps({"missing": str(error.name)}), file=out, flush=True)
        return
    before, begin = peak_mb(), time.process_time()
    decode = load(path)
    decode(np.zeros(RATE, np.float32) + 1e-4)
    print(json.dumps({"load": time.process_time() - begin}), file=out, flush=True)
    for line in sys.stdin:
        name, audio = json.loads(line)
        wave = read_wave(audio, name, RATE)
        begin = time.process_time()
        text = decode(wave)
        seconds = time.process_time() - begin
        said = {"time": seconds, "text": text, "memory_mb": peak_mb() - before}
        print(json.dumps(said), file=out, flush=True)


def peak_mb() -> float:
    """The largest memory of this process so far; another counter may be inherited."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


type Decode = Callable[[np.ndarray], str]


def onnx() -> Callable[[str], Decode]:
    """Import ONNX Runtime; return a function that loads a folder."""
    from espnet_ext.export.onnx_decoder import load_exported

    return lambda path: _texts(load_exported(Path(path)))


def torch() -> Callable[[str], Decode]:
    """The same for torch."""
    import torch as library

    from espnet_ext.bridge.loading import load

    library.set_num_threads(1)
    return lambda path: _texts(load(path))


def _texts(model: Any) -> Decode:
    return lambda wave: model(wave, RATE).text


def onnx_stream() -> Callable[[str], Decode]:
    """ONNX Runtime, chunk by chunk."""
    from espnet_ext.export.onnx_stream import OnnxStreamer

    return lambda path: _streamed(OnnxStreamer(Path(path)))


def torch_stream() -> Callable[[str], Decode]:
    """torch, chunk by chunk."""
    import torch as library

    from espnet_ext.bridge.bundle import open_bundle
    from espnet_ext.bridge.streamers import streamer_of

    library.set_num_threads(1)
    return lambda path: _streamed(streamer_of(open_bundle(path), "transducer_greedy"))


def _streamed(streamer: Any) -> Decode:
    from espnet_ext.bridge.latency import Timing

    def decode(wave: np.ndarray) -> str:
        places = range(streamer.piece, len(wave), streamer.piece)
        found = streamer.run(np.split(wave, places), Timing())
        text = "".join(partial.text for partial in found if partial.finished)
        return " ".join(text.split())

    return decode


def sherpa_stream(library: Any, folder: Path) -> Decode:
    """sherpa-onnx, in pieces of 160 ms; silence at the end completes the last chunk.

    Raises:
        UserError: a model of features that sherpa-onnx does not compute.
    """
    settings = read_json(folder / "model.json")
    if "sherpa_onnx" not in settings:
        raise UserError(f"{folder}: on features that sherpa-onnx does not compute")
    rest = RATE // 100 * (settings["window"] + 2)
    model = library.OnlineRecognizer.from_transducer(
        **{name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        num_threads=1,
    )
    piece = RATE * 16 // 100

    def decode(wave: np.ndarray) -> str:
        stream, padded = model.create_stream(), np.append(wave, np.zeros(rest, np.float32))
        for part in np.split(padded, range(piece, len(padded), piece)):
            stream.accept_waveform(RATE, part)
            while model.is_ready(stream):
                model.decode_stream(stream)
        return model.get_result(stream).strip()

    return decode


def sherpa() -> Callable[[str], Decode]:
    """The same for sherpa-onnx."""
    import sherpa_onnx

    def load(path: str) -> Decode:
        folder = Path(path)
        tokens = str(folder / "tokens.txt")
        if (folder / "joiner.onnx").is_file():
            return sherpa_stream(sherpa_onnx, folder)
        if (folder / "model.onnx").is_file():
            model = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
                model=str(folder / "model.onnx"), tokens=tokens
            )
        else:
            model = sherpa_onnx.OfflineRecognizer.from_moonshine(
                preprocessor=str(folder / "preprocess.onnx"),
                encoder=str(folder / "encode.onnx"),
                uncached_decoder=str(folder / "uncached_decode.onnx"),
                cached_decoder=str(folder / "cached_decode.onnx"),
                tokens=tokens,
                num_threads=1,
            )

        def decode(wave: np.ndarray) -> str:
            stream = model.create_stream()
            stream.accept_waveform(RATE, wave)
            model.decode_stream(stream)
            return stream.result.text.strip()

        return decode

    return load


def faster_whisper() -> Callable[[str], Decode]:
    """The same for CTranslate2, by faster-whisper."""
    from faster_whisper import WhisperModel

    def load(path: str) -> Decode:
        model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=1)
        options = {"language": "en", "beam_size": 1, "without_timestamps": True}
        options |= {"condition_on_previous_text": False, "temperature": 0.0}

        def decode(wave: np.ndarray) -> str:
            text = "".join(part.text for part in model.transcribe(wave, **options)[0])
            kept = (c for c in text.lower() if c.isalnum() or c in "' ")
            return " ".join("".join(kept).split())

        return decode

    return load


LOADERS: Mapping[str, Callable[[], Callable[[str], Decode]]] = {
    "onnx": onnx,
    "sherpa": sherpa,
    "torch": torch,
    "onnx-stream": onnx_stream,
    "torch-stream": torch_stream,
    "faster-whisper": faster_whisper,
}


def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what was measured."""
    rows = []
    first = None
    for one in measured["systems"]:
        kind, _, path = one["system"].partition(":")
        if "missing" in one:
            rows.append([kind, path, f"no package {one['missing']}", "", "", "", "", ""])
            continue
        total = sum(one["times"])
        first = first or total
        rows.append(
            [kind, path, f"{total / one['audio']:.4f}", f"{total / first:.2f}"]
            + [f"{one['bytes'] / 1e6:.2f}", f"{one['memory_mb']:.0f}"]
            + [f"{one['load']:.2f}", f"{one['wer']:.1f}"]
        )
    return {
        "title": "Exported models beside others",
        "about": "Systems take turns, an utterance each; one thread. Memory is the peak over that "
        "of the process with its libraries. faster-whisper pads to 30 s; its texts are in lower "
        "case without punctuation here.",
        "header": ["by", "model", "CPU time / audio", "to the first", "MB", "memory, MB"]
        + ["load, s", "WER"],
        "rows": rows,
        "notes": [
            f"{measured['utterances']} utterances, 1 thread. Where CPU time / audio is 0.01, a "
            "chunk of 160 ms takes 1.6 ms."
        ],
        "measured": measured,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2])
    else:
        sys.exit(run_cli("device.py", main))

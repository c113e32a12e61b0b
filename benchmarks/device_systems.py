"""The systems that ``device.py`` compares: how each is loaded and asked for a text."""

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ext.errors import UserError
from espnet_ext.files import read_json

RATE = 16000
GRAPHS = ("encoder", "decoder")  # of a Whisper as sherpa-onnx's script exports it
SELF = ("in_n_layer_self_k_cache", "in_n_layer_self_v_cache")  # what its decoder gets
CROSS = ("n_layer_cross_k", "n_layer_cross_v")
GREEDY = "greedy.json"  # what a search with these graphs needs
_MOST = 224  # tokens of 30 s

type Decode = Callable[[np.ndarray], str]
type Run = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]


def plain(text: str) -> str:
    """A text in lower case without punctuation."""
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in "' ").split())


def onnx() -> Callable[[str], Decode]:
    """Import ONNX Runtime; return a function that loads a folder."""
    from espnet_ext.export.runtime.decoder import load_exported

    def load(path: str, beam: int) -> Decode:
        folder, _, member = path.partition("#")
        return _texts(load_exported(Path(folder), member=member or None, beam=_asked(beam)))

    return load


def torch() -> Callable[[str], Decode]:
    """The same for torch."""
    import torch as library

    from espnet_ext.bridge.decoding.loading import load
    from espnet_ext.bridge.deployed.bundle import open_bundle

    library.set_num_threads(1)

    def read(path: str, beam: int) -> Decode:
        attends = open_bundle(path).arguments.get("decoder") == "whisper"
        return _texts(load(path, beam=beam if attends else None))

    return read


def _asked(beam: int) -> int | None:
    return None if beam == 1 else beam  # which a model without a beam refuses


def _texts(model: Any) -> Decode:
    return lambda wave: model(wave, RATE).text


def onnx_stream() -> Callable[[str], Decode]:
    """ONNX Runtime, chunk by chunk."""
    from espnet_ext.export.runtime.stream import OnnxStreamer

    return lambda path: _streamed(OnnxStreamer(Path(path)))


def torch_stream() -> Callable[[str], Decode]:
    """torch, chunk by chunk."""
    import torch as library

    from espnet_ext.bridge.deployed.bundle import open_bundle
    from espnet_ext.bridge.streaming.streamers import streamer_of

    library.set_num_threads(1)
    return lambda path: _streamed(streamer_of(open_bundle(path), "transducer_greedy"))


def _streamed(streamer: Any) -> Decode:
    from espnet_ext.bridge.streaming.latency import Timing

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
        elif (folder / "decoder.onnx").is_file():
            model = sherpa_onnx.OfflineRecognizer.from_whisper(
                encoder=str(folder / "encoder.onnx"),
                decoder=str(folder / "decoder.onnx"),
                tokens=tokens,
                num_threads=1,
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

        return partial(_sherpa_text, model)

    return load


def _sherpa_text(model: Any, wave: np.ndarray) -> str:
    stream = model.create_stream()
    stream.accept_waveform(RATE, wave)
    model.decode_stream(stream)
    return stream.result.text.strip()


def faster_whisper() -> Callable[[str], Decode]:
    """The same for CTranslate2, by faster-whisper."""
    from faster_whisper import WhisperModel

    def load(path: str, beam: int) -> Decode:
        model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=1)
        options = {"language": "en", "beam_size": beam, "without_timestamps": True}
        options |= {"condition_on_previous_text": False, "temperature": 0.0}

        def decode(wave: np.ndarray) -> str:
            return plain("".join(part.text for part in model.transcribe(wave, **options)[0]))

        return decode

    return load


def whisper_cpp() -> Callable[[str], Decode]:
    """The same for whisper.cpp."""
    from pywhispercpp.model import Model

    def load(path: str, beam: int) -> Decode:
        options: dict[str, Any] = {"n_threads": 1, "language": "en", "temperature_inc": 0.0}
        options |= {"print_progress": False, "print_realtime": False, "no_timestamps": True}
        options |= {"no_context": True, "params_sampling_strategy": int(beam > 1)}
        options["beam_search"] = {"beam_size": beam, "patience": -1.0}
        model = Model(str(Path(path, "ggml.bin")), redirect_whispercpp_logs_to=None, **options)
        return lambda wave: plain(" ".join(part.text for part in model.transcribe(wave)))

    return load


def sherpa_whisper() -> Callable[[str], Decode]:
    """The same for sherpa-onnx and graphs as its own script writes them."""
    import sherpa_onnx

    def load(path: str) -> Decode:
        model = sherpa_onnx.OfflineRecognizer.from_whisper(
            **{name: str(Path(path, f"{name}.onnx")) for name in GRAPHS},
            tokens=str(Path(path, "tokens.txt")),
            num_threads=1,
        )
        return lambda wave: plain(_sherpa_text(model, wave))

    return load


def onnxruntime() -> Callable[[str], Decode]:
    """The same for ONNX Runtime and the published model in float32."""
    import onnxruntime as library

    def run(path: Path) -> Run:
        options = library.SessionOptions()
        options.intra_op_num_threads = 1
        session = library.InferenceSession(str(path), options)
        return lambda given: session.run(None, given)

    return greedy(run)


def openvino() -> Callable[[str], Decode]:
    """The same for OpenVINO."""
    import openvino as library

    def run(path: Path) -> Run:
        options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        model = library.Core().compile_model(str(path), "CPU", options)
        return lambda given: [model(given)[out] for out in model.outputs]

    return greedy(run)


def greedy(runner: Callable[[Path], Run]) -> Callable[[str], Decode]:
    """Greedy search with graphs that a runtime runs; speech is padded to 30 s, as published."""
    from transformers import WhisperFeatureExtractor

    def load(path: str) -> Decode:
        folder = Path(path)
        encode, decode = (runner(folder / f"{name}.onnx") for name in GRAPHS)
        features = WhisperFeatureExtractor.from_pretrained(folder)
        lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
        texts = [base64.b64decode(line.split()[0]) for line in lines]
        settings = read_json(folder / GREEDY)

        def text(wave: np.ndarray) -> str:
            mel = features(wave, sampling_rate=RATE, return_tensors="np").input_features
            crossed = encode({"mel": mel})
            states: Sequence[np.ndarray] = [np.zeros(settings["cache"], np.float32)] * 2
            tokens, known, said = np.array([settings["prompt"]]), 0, b""
            for _ in range(min(_MOST, settings["cache"][2] - known - tokens.shape[1])):
                given = {"tokens": tokens, "offset": np.array([known])}
                given |= zip(SELF, states, strict=True)
                logits, *states = decode({**given, **dict(zip(CROSS, crossed, strict=True))})
                known += tokens.shape[1]
                best = int(logits[0, -1, : len(texts) + 1].argmax())
                if best == len(texts):  # the end
                    break
                said += texts[best]
                tokens = np.array([[best]])
            return plain(said.decode("utf-8", "replace"))

        return text

    return load


# Kinds whose function loads (path, beam); those of the others load (path).
WITH_BEAM = ("onnx", "torch", "faster-whisper", "whisper.cpp")
LOADERS: Mapping[str, Callable[[], Callable[..., Decode]]] = {
    "onnx": onnx,
    "sherpa": sherpa,
    "torch": torch,
    "onnx-stream": onnx_stream,
    "torch-stream": torch_stream,
    "faster-whisper": faster_whisper,
    "whisper.cpp": whisper_cpp,
    "sherpa-whisper": sherpa_whisper,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}

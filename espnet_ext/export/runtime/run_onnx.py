"""Transcribe audio files with the exported model in this script's folder.

Needs numpy, onnxruntime and soundfile, and from its folder run_search.py for attention and
family_weights.py for a family; nothing else of the project that made it. Of a streaming model,
Stream hears audio in pieces.

Example: python transcribe.py speech.wav
         python transcribe.py --beam 5 speech.wav         (of attention: fewer errors, more time)
         python transcribe.py --member NAME speech.wav    (of a family, instead of the first)
         python transcribe.py --assemble NAME             (for runtimes that read files alone)
"""

import base64
import contextlib
import hashlib
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime

START, END, PROMPT, TEXT = 1, 2, 3, 4  # ids of a decoder; text begins at the last
BLANK = 0  # id of CTC
ATTENTION = ("whisper", "whisper_offset", "attention")  # kinds that have such a decoder
GRAPHS = {
    "whisper": ("preprocess", "encode", "uncached_decode", "cached_decode"),
    "attention": ("preprocess", "encode", "uncached_decode", "cached_decode"),
    "whisper_offset": ("preprocess", "encoder", "decoder"),
    "ctc": ("preprocess", "model"),
    "class": ("preprocess", "model"),
    "transducer": ("preprocess", "encoder", "decoder", "joiner"),
}


def sibling(name):
    """A module of the package, or a file next to this script."""
    sys.dont_write_bytecode = True  # nothing else belongs into the folder
    return importlib.import_module(f"{'.' if __package__ else ''}{name}", __package__)


def family():
    """The module that computes weights of a family."""
    return sibling("family_weights")


def has_vnni():
    """True for an x86 processor that multiplies 8-bit numbers exactly, if Linux lists that."""
    with contextlib.suppress(OSError):
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


def return_memory():
    """Give freed memory back to the system, which glibc keeps: most of what loading needs."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):  # elsewhere
        importlib.import_module("ctypes").CDLL(None).malloc_trim(0)


class Model:
    """The graphs of a folder on ``threads`` threads; of a family a member (KeyError: no such).

    ``beam``: texts that an attention decoder extends at each step; 1 is greedy.
    """

    def __init__(self, folder, threads=1, member=None, beam=1):
        folder, self.beam = Path(folder), beam
        self.settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        computed = b""
        if members := self.settings.get("members"):  # the best first
            member = member or next(iter(members))
            self.settings |= members[member]
        elif member:
            raise KeyError(member)
        if members and not (folder / f"{member}{family().COMPUTED}").exists():
            computed = family().assembled(folder, member)
        files = self.settings.get("files", {})
        lines = Path(folder, files.get("tokens.txt", "tokens.txt")).read_text("utf-8").splitlines()
        self.symbols = {int(i): text for text, i in (line.rsplit(" ", 1) for line in lines)}
        self.offset = self.settings["kind"] == "whisper_offset"
        if self.offset:  # bytes, and ids without those of the other decoders
            found = {i: base64.b64decode(text) for i, text in self.symbols.items()}
            named = {i: "".join(f"<0x{byte:02X}>" for byte in data) for i, data in found.items()}
            self.symbols = {TEXT + i: text for i, text in named.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # it would keep what is freed when a session is made
        if not has_vnni():
            # Sums of two 8-bit products are exact on such an x86 processor, too: there they would
            # be cut to 16 bits. With VNNI they are exact, and this takes three times as long.
            options.add_session_config_entry("session.x64quantprecision", "1")
        if computed:
            names = [family().WEIGHTS, f"{member}{family().COMPUTED}"]
            given = [np.memmap(folder / names[0], np.uint8, "r"), computed]
            options.add_external_initializers_from_files_in_memory(names, given, [*map(len, given)])
        self.graphs = {}
        for name in GRAPHS[self.settings["kind"]]:
            file = files.get(f"{name}.onnx", f"{name}.onnx")
            self.graphs[name] = onnxruntime.InferenceSession(str(folder / file), options)
            return_memory()

    def run(self, name, *inputs):
        """Run a graph on its inputs, in their order."""
        known = [one.name for one in self.graphs[name].get_inputs()]
        return self.graphs[name].run(None, dict(zip(known, inputs, strict=True)))

    def tokens(self, wave):
        """Ids of what is found in samples (n,), float32 in [-1, 1] at the model's rate.

        Returns them, the sum of their log-probabilities, and the place of each from 0 to 1 (none
        of an attention decoder, which aligns nothing).
        """
        if self.settings["kind"] in ATTENTION:
            return *self._attend(wave), []
        if self.settings["kind"] == "transducer":
            stream = Stream(self)
            stream.accept(wave, last=True)
            return stream.tokens, stream.score, [f / stream.count for f in stream.frames]
        scores = self.log_probs(wave)
        if self.settings["kind"] == "class":
            best = int(scores.argmax())
            return [best], float(scores[best]), []
        best = scores.argmax(1)
        first = (best != np.roll(best, 1)) | (np.arange(len(best)) == 0)
        frames = np.flatnonzero(first & (best != BLANK))
        score = float(scores[frames, best[frames]].sum())
        return best[frames].tolist(), score, (frames / len(best)).tolist()

    def text(self, tokens):
        """The text of ids."""
        joined = "".join(self.symbols[token] for token in tokens).replace("\u2581", " ")
        parts: list = re.split(r"((?:<0x[0-9A-F]{2}>)+)", joined)
        parts[1::2] = [bytes.fromhex(re.sub("<0x|>", "", part)) for part in parts[1::2]]
        parts[::2] = [part.encode() for part in parts[::2]]
        return " ".join(b"".join(parts).decode("utf-8", "replace").split())

    def log_probs(self, wave):
        """Of CTC (frames, V), of a classifier (classes,)."""
        (x,) = self.run("preprocess", wave[None])
        return self.run("model", x, np.array([x.shape[1]]))[0][0]

    def encode(self, wave):
        """The encoder's output for samples (n,)."""
        (mel,) = self.run("preprocess", wave[None])
        if self.offset:
            return self.run("encoder", mel)
        return self.run("encode", mel, np.array([mel.shape[2]], np.int32))[0]

    def steps(self, encoded):
        """The first states, and a function of a token and states: scores (V,), new states."""
        if self.offset:
            return self._steps_by_offset(encoded)
        length = np.array([encoded.shape[1]], np.int32)
        _, *first = self.run("uncached_decode", np.array([[START]], np.int32), encoded, length)

        def step(token, states):
            given = np.array([[token]], np.int32)
            logits, *states = self.run("cached_decode", given, encoded, length, *states)
            return logits[0, -1], states

        return first, step

    def _steps_by_offset(self, encoded):
        """The same with graphs that need the number of tokens before."""
        texts, never = len(self.symbols), np.full(1, -1e9, np.float32)
        prompt = [texts + 1 + place for place in range(len(self.settings["prompt"]))]
        caches = [np.zeros((self.settings["layers"], 1, 1, 1), np.float32)] * 2

        def step(token, states):
            *caches, offset = states
            given = np.array([prompt if token == PROMPT else [token - TEXT]], np.int64)
            logits, *caches = self.run("decoder", given, *caches, *encoded, offset)
            row = logits[0, -1]
            scores = np.concatenate([never, never, row[texts : texts + 1], never, row[:texts]])
            return scores, [*caches, offset + given.size]

        return [*caches, np.zeros(1, np.int64)], step

    def _attend(self, wave):
        """Search with the attention decoder."""
        seconds = len(wave) / self.settings["rate"]
        most = int(self.settings["tokens_per_second"] * seconds) + self.settings["more_tokens"]
        most = min(most, self.settings["most_tokens"])
        states, step = self.steps(self.encode(wave))
        token = PROMPT
        if "languages" in self.settings:
            scores, states = step(token, states)
            token = int(scores.argmax())
        return sibling("run_search").beam_search(step, token, states, most, self.beam, END)


class Stream:
    """Audio that a transducer hears piece by piece, in memory of constant size but for its tokens.

    Of ``count`` frames of the encoder so far, ``frames`` are those at which ``tokens`` were found;
    ``score`` is the log-probability of all that was decided, blanks too.
    """

    def __init__(self, model):
        self.model, settings = model, model.settings
        rate, self.bins = settings["rate"], settings["bins"]
        self.length, self.hop = rate * 25 // 1000, rate // 100
        self.window, self.shift = settings["window"], settings["shift"]
        self.samples = self.last_samples = np.zeros(0, np.float32)
        self.features = np.zeros((0, self.bins), np.float32)
        self.heard = self.computed = self.count = 0
        self.caches, self.states = self._zeros("encoder", 2), self._zeros("decoder", 2)
        self.blank = len(model.symbols) - 1
        self.tokens: list[int] = []
        self.frames: list[int] = []
        self.score = 0.0
        self.feed(self.blank)

    def accept(self, wave, last=False):
        """Hear samples (n,), float32; the tokens that they complete are appended to ``tokens``."""
        for frame in self.encode(wave, last):
            scores = self.scores(frame)
            token = int(scores.argmax())
            self.score -= float(np.log(np.exp(scores - scores[token]).sum()))
            if token != self.blank:
                self.tokens.append(token)
                self.frames.append(self.count)
                self.feed(token)
            self.count += 1

    def encode(self, wave, last=False):
        """Frames (m, J) of the chunks that samples complete; at the end, of the rest."""
        self.features = np.concatenate([self.features, self._computed(wave, last)])
        found = [np.zeros((0, self.predicted.shape[1]), np.float32)]
        while len(self.features) >= self.window or (last and len(self.features)):
            ready = self.features[: self.window]
            padded = np.pad(ready, ((0, self.window - len(ready)), (0, 0))).T[None]
            size = np.array([len(ready)], np.int64)
            frames, count, *self.caches = self.model.run("encoder", padded, size, *self.caches)
            found.append(frames[0].T[: int(count[0])])
            self.features = self.features[self.shift :]
        return np.concatenate(found)

    def feed(self, token):
        """Give a token to the predictor."""
        given = np.array([[token]], np.int32), np.array([1], np.int32)
        self.predicted, _, *self.states = self.model.run("decoder", *given, *self.states)

    def scores(self, frame):
        """Scores (V,) of the next token at a frame (J,)."""
        return self.model.run("joiner", frame[None, :, None], self.predicted)[0].reshape(-1)

    def _computed(self, wave, last):
        """Features of the windows that samples complete; at the end, with reflected edges."""
        before, self.heard = self.heard, self.heard + len(wave)
        self.samples = np.concatenate([self.samples, wave])
        self.last_samples = np.concatenate([self.last_samples, wave])[-self.length :]
        if self.heard < self.length:
            return np.zeros((0, self.bins), np.float32)
        if before < self.length:  # the first window reflects the start
            edge = self.length // 2 - self.hop // 2
            self.samples = np.concatenate([self.samples[:edge][::-1], self.samples])
        count = (len(self.samples) - self.length) // self.hop + 1
        if last:
            self.samples = np.concatenate([self.samples, self.last_samples[::-1]])
            count = (self.heard + self.hop // 2) // self.hop - self.computed
        if count <= 0:
            return np.zeros((0, self.bins), np.float32)
        piece = self.samples[: (count - 1) * self.hop + self.length]
        self.samples = self.samples[count * self.hop :]
        self.computed += count
        return self.model.run("preprocess", piece[None])[0][0]

    def _zeros(self, graph, first):
        """The state of a graph before it has run: zeros for all inputs from ``first`` on."""
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        inputs = self.model.graphs[graph].get_inputs()[first:]
        return [np.zeros(one.shape, kinds[one.type]) for one in inputs]


def refuse(path, samples, rate, model):
    """End the script if it cannot transcribe samples (n,)."""
    wanted, settings = model.settings["rate"], model.settings
    any_length = settings["kind"] in ("transducer", "class")
    longest = settings.get("most_seconds", 10**9 if any_length else 30) * rate
    if rate != wanted:
        sys.exit(f"{path}: needs {wanted} Hz, not {rate}")
    if not len(samples) or not np.isfinite(samples).all():
        sys.exit(f"{path}: has no samples, or some that are no numbers")
    if len(samples) > longest:
        sys.exit(f"{path}: needs at most {longest // rate} s: cut it at pauses")


def changed(folder, settings):
    """The first file of a folder whose SHA-256 is not that in its settings; None: there is none."""
    digests = dict(settings["sha256"])
    for member, one in settings.get("members", {}).items():
        name = f"{member}{family().COMPUTED}"
        if (folder / name).exists():
            digests[name] = one["computed"]
    for name, wanted in digests.items():
        path = folder / Path(name).name
        if not path.exists():
            return path
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                return path
    return None


def main():
    """Print the text of every file that is named."""
    import soundfile

    given, folder, beam = sys.argv[1:], Path(__file__).parent, 1
    if given[:1] == ["--beam"] and given[1:2] and given[1].isdecimal() and int(given[1]):
        beam, given = int(given[1]), given[2:]
    member = given[1] if given[:1] in (["--member"], ["--assemble"]) and len(given) > 1 else None
    paths = given[2:] if member else given
    assembles = member and given[0] == "--assemble"
    if not assembles and (not paths or paths[0].startswith("-")):
        sys.exit(__doc__)
    try:
        settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if path := changed(folder, settings):
            sys.exit(f"{path} was changed or is missing: export the model again")
        if member and member not in settings.get("members", {}):
            sys.exit(f"no member {member!r}: model.json lists those of a family")
        if assembles:
            path = family().assemble(folder, member)
            print(f"{path.name}: {path.stat().st_size:,} bytes")
            return
        model = Model(folder, member=member, beam=beam)
    except Exception as error:  # types of ONNX Runtime, too
        sys.exit(f"{folder}: damaged, of another version, or no room: {error}")
    for path in paths:
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            wave = samples.mean(1)
            refuse(path, wave, rate, model)
            wave = np.pad(wave, (0, max(0, rate // 10 - len(wave))))  # a window, at least
            print(model.text(model.tokens(wave)[0]))
        except Exception as error:  # types of libsndfile and ONNX Runtime, too
            sys.exit(f"{path}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()

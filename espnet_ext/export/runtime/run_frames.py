"""Print the class of a wave file, or its text by CTC: the shortest program that runs these graphs.

Example: python example.py speech.wav

transcribe.py does the same, and says what is wrong with a file.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile


def main():
    """Read a file of the model's rate, and run both graphs."""
    folder, options = Path(__file__).parent, onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact on every processor
    names = "preprocess", "model"
    graphs = [onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in names]
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    symbols = [line.rsplit(" ", 1)[0] for line in lines]
    wave, _ = soundfile.read(sys.argv[1], dtype="float32")
    (x,) = graphs[0].run(None, {"audio": wave[None]})
    scores = graphs[1].run(None, {"x": x, "x_lens": np.array([x.shape[1]])})[0][0]
    if scores.ndim == 1:  # of classes
        print(symbols[scores.argmax()])
        return
    best = scores.argmax(1)  # of each frame: repetitions and blanks (token 0) are no text
    first = (best != np.roll(best, 1)) | (np.arange(len(best)) == 0)
    text = "".join(symbols[token] for token in best[first & (best != 0)])
    print(" ".join(text.replace("\u2581", " ").split()))


if __name__ == "__main__":
    main()

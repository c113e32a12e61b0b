"""Compression methods for speech encoders, as extensions of ESPnet's trainers."""

import importlib
from pathlib import Path
from typing import Any

from espnet_ext import unchecked  # noqa: F401  (before ESPnet)

__version__ = "0.1.0"


def load(
    path: Any,
    device: str = "cpu",
    max_bytes: int | None = None,
    method: str | None = None,
    max_rtf: float | None = None,
    beam: int | None = None,
) -> Any:
    """Load a deployed model, which is then called with samples and their rate.

        model = espnet_ext.load("exp/nested_whisper_tiny_m/deploy", max_bytes=16 * 2**20)
        print(model.file("speech.flac").text)
        print(model(samples, 44100).segments)

    Args:
        path: a folder that ``espnet-ext deploy`` wrote, a file of weights in it, a family file, a
            folder with several of these, or a folder that ``espnet-ext export`` wrote.
        device: where it is computed, as torch names it.
        max_bytes: of the file of weights, of an exported family of a folder for the member alone:
            the best variant or member that fits is used.
        method: of decoding; None: the first that the config of the training names.
        max_rtf: seconds of processing for a second of audio, measured here once and remembered.
            Not for an exported folder, nor are device and method.
        beam: texts of an utterance that are extended at each step, of a Whisper, a transducer or
            an exported attention decoder; None: as ``method`` says, of an exported one 1.

    Returns:
        A ``recogniser.Recogniser``.

    Raises:
        UserError: no such model, one that was changed, or none that fits.
    """
    # By name: importing this package must need neither torch nor ESPnet.
    if (Path(path) / "model.json").is_file():
        exported = importlib.import_module("espnet_ext.export.runtime.decoder")
        exported.refuse_options(Path(path), device, method, max_rtf)
        return exported.load_exported(Path(path), max_bytes=max_bytes, beam=beam)
    muted = importlib.import_module("espnet_ext.bridge.muted").muted
    with muted():  # torch and ESPnet take seconds to import
        loading = importlib.import_module("espnet_ext.bridge.decoding.loading")
    return loading.load(path, device, max_bytes, method, max_rtf, beam)

"""Deployed models, ready to be called."""

import math
from pathlib import Path
from typing import Any

import torch

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.decoding.real_time_factor import real_time_factor
from espnet_ext.bridge.deployed.bundle import Bundle, bundles
from espnet_ext.config.decoding import ATTENTION_BEAM, TRANSDUCER, option_names
from espnet_ext.errors import UserError
from espnet_ext.recogniser import Recogniser

BEAMS = {"whisper": ATTENTION_BEAM, "transducer": TRANSDUCER[1]}  # by ESPnet's decoder


def decoder_of(
    bundle: Bundle, method: str | None = None, device: str = "cpu", beam: int | None = None
) -> Decoder:
    """Build a model that was read and load its weights.

    Args:
        bundle: what was read.
        method: of decoding; None: the first that the config of the training names.
        device: torch's name of where it is computed.
        beam: of the beam search of a Whisper or transducer; None: as ``method`` says.

    Raises:
        UserError: no such method or device, no such search of this model, or no model of the
            features.
    """
    if bundle.source.from_arks:
        raise UserError(
            f"{bundle.path}: the model of its features is missing: run stage 5 again "
            "(espnet-ext deploy)"
        )
    name, options = bundle.method(method) if beam is None else _beam_search(bundle, method, beam)
    check_device(device)
    return Decoder(bundle, name, options, bundle.source, device)


def _beam_search(bundle: Bundle, method: str | None, beam: int) -> tuple[str, dict[str, Any]]:
    """The beam search of a model, whether its config names that or not."""
    name = BEAMS.get(str(bundle.arguments.get("decoder")))
    if name is None or method not in (None, name):
        raise UserError(f"{bundle.path}: a beam is for a Whisper or a transducer, without a method")
    options = bundle.methods.get(name, next(iter(bundle.methods.values()), {}))
    kept = {key: options[key] for key in options.keys() & option_names(name)}
    return name, {**kept, "beam_size": beam}


def check_device(device: str) -> None:
    """Raise UserError if torch has no such device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        said = str(error).splitlines()[0]
        raise UserError(f"device {device}: {said}; here are: {', '.join(known)}") from None


def load(
    path: str | Path,
    device: str = "cpu",
    max_bytes: int | None = None,
    method: str | None = None,
    max_rtf: float | None = None,
    beam: int | None = None,
) -> Recogniser:
    """Load the best deployed model that fits; see ``espnet_ext.load``."""
    fastest = math.inf
    for bundle in bundles(path, max_bytes):
        decoder = decoder_of(bundle, method, device, beam)
        if max_rtf is None:
            return Recogniser(decoder)
        found = real_time_factor(bundle, decoder)
        if found <= max_rtf:
            return Recogniser(decoder)
        fastest = min(fastest, found)
    raise UserError(
        f"{path}: no model has a real-time factor of {max_rtf:g} here; the fastest has "
        f"{fastest:.3g}"
    )

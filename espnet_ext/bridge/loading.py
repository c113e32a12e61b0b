"""Deployed models, ready to be called."""

import math
from pathlib import Path

import torch

from espnet_ext.bridge.bundle import Bundle, bundles
from espnet_ext.bridge.decoder import Decoder
from espnet_ext.bridge.speed import real_time_factor
from espnet_ext.errors import UserError
from espnet_ext.recogniser import Recogniser


def decoder_of(bundle: Bundle, method: str | None = None, device: str = "cpu") -> Decoder:
    """Build a model that was read and load its weights.

    Args:
        bundle: what was read.
        method: of decoding; None: the first that the config of the training names.
        device: torch's name of where it is computed.

    Raises:
        UserError: no such method or device, or no model of the features.
    """
    if bundle.source.from_arks:
        raise UserError(
            f"{bundle.path}: the model of its features is missing: run stage 5 again "
            "(espnet-ext deploy)"
        )
    name, options = bundle.method(method)
    check_device(device)
    return Decoder(bundle, name, options, bundle.source, device)


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
) -> Recogniser:
    """Load the best deployed model that fits; see ``espnet_ext.load``."""
    fastest = math.inf
    for bundle in bundles(path, max_bytes):
        decoder = decoder_of(bundle, method, device)
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

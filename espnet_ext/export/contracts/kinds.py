"""The graphs of each kind of model, and how they are compared with torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.registry import task_of
from espnet_ext.errors import UserError
from espnet_ext.export.contracts.attention import AttentionContract
from espnet_ext.export.contracts.frames import FramesContract
from espnet_ext.export.contracts.transducer import TransducerContract
from espnet_ext.export.contracts.whisper import OffsetContract, WhisperContract
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.runtime import run_onnx
from espnet_ext.models.whisper_decoder import WhisperDecoder

FROM_WHISPER = "from_whisper"


class Contract(Protocol):
    """The graphs of one kind of model."""

    def write(self, folder: Path, products: Products) -> dict[int, int]:
        """Write graphs into a folder that exists; return how many weights are in how many bits."""
        ...

    def symbols(self) -> Mapping[int, str]:
        """Lines of tokens.txt: the text of each id of the graphs."""
        ...

    def settings(self) -> dict[str, Any]:
        """Entries of model.json: ``kind``, and what the search needs."""
        ...

    def difference(self, model: run_onnx.Model, waves: Sequence[np.ndarray]) -> float:
        """The largest difference of scores from torch's, relative to the largest score."""
        ...


def contract_of(
    bundle: Bundle,
    decoder: Decoder,
    bits: int | None,
    search: str | None = None,
    layout: str | None = None,
) -> Contract:
    """The contract that a deployed model is exported in.

    Args:
        bundle: the model as it lies on disk.
        decoder: the same as torch computes it; with ``bits`` it gets the rounded weights.
        bits: of the matrices of a model at 32 bits: 8 with a scale for each output, 4 with one for
            32 inputs. None: as they are. A packed model keeps its bits.
        search: see ``attends``.
        layout: of a Whisper, ``from_moonshine`` (the default) or ``from_whisper``.

    Raises:
        UserError: a model that no contract can hold, or not in this layout.
    """
    stored = bundle.stored()
    if stored and bits is not None:
        raise UserError(f"{bundle.path} is packed and keeps its bits: leave out --bits")
    asr, rounded = decoder.model, None if bits == 32 else bits
    if isinstance(asr.decoder, WhisperDecoder):
        kind = OffsetContract if layout == FROM_WHISPER else WhisperContract
        return kind(bundle, decoder, stored, rounded)
    if layout is not None:
        raise UserError(f"{bundle.path}: --layout {layout} is of a Whisper: leave it out")
    if is_transducer(bundle):
        return TransducerContract(bundle, decoder, stored, rounded)
    if attends(bundle, search):
        return AttentionContract(bundle, decoder, stored, rounded)
    return FramesContract(bundle, decoder, stored, rounded)


def attends(bundle: Bundle, search: str | None = None) -> bool:
    """True if the decoder of an ESPnet model is exported, and not its CTC.

    ``search``: ``ctc`` or ``attention``, of a model that has both; None: CTC if it has that.

    Raises:
        UserError: a model without what ``search`` names.
    """
    arguments = bundle.arguments
    others = (None, "transducer", "whisper")
    other = task_of(arguments) == "cls" or arguments.get("decoder") in others
    weight = (arguments.get("model_conf") or {}).get("ctc_weight", 0.5)
    if search == "attention" and (other or weight == 1.0):
        raise UserError(f"{bundle.path}: this model has no attention decoder: leave out --search")
    if search == "ctc" and (other or weight == 0.0):
        raise UserError(f"{bundle.path}: this model has no CTC: leave out --search")
    return not other and (search == "attention" or weight == 0.0)


def is_transducer(bundle: Bundle) -> bool:
    """True for a model with a predictor and a joiner."""
    return bundle.arguments.get("decoder") == "transducer"

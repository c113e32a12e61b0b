"""What the contracts of graphs that torch traces have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_ext.bridge.decoding.decoder import Decoder
from espnet_ext.bridge.decoding.loading import decoder_of
from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.bridge.deployed.variants import matrices
from espnet_ext.errors import UserError
from espnet_ext.export.graphs.products import Products
from espnet_ext.export.traced.rounded import is_rounded, round_weight
from espnet_ext.formats.packed import State

NAMES = {"<blank>": "<blk>", "<space>": "\u2581"}


class TracedContract:
    """Rounds the matrices of a model, and traces a copy of it."""

    method: str | None = None  # of decoding, that the copy is loaded with

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder,
        stored: State,
        bits: int | None,
        unused: tuple[str, ...] = ("ctc.",),
    ):
        """See ``contracts.kinds.contract_of``; ``unused``: how names begin that no graph has."""
        self.bundle, self.decoder = bundle, decoder
        found = dict(stored)
        for name, weight in matrices(decoder.model).items() if bits else ():
            if is_rounded(decoder.model.get_submodule(name.rpartition(".")[0])):
                found[name] = round_weight(weight, int(bits or 0))
        self.stored = {n: weight for n, weight in found.items() if not n.startswith(unused)}

    def write(self, folder: Path, products: Products) -> dict[int, int]:
        """Write the graphs; errors name the model."""
        another = decoder_of(self.bundle, self.method)  # its layers are replaced
        another.model.load_state_dict(self.decoder.model.state_dict())
        try:
            return self.trace(another, self.stored, folder, products)
        except UserError as error:
            raise UserError(f"{self.bundle.path}: {error}") from None

    def trace(
        self, decoder: Decoder, state: Mapping[str, Any], folder: Path, products: Products
    ) -> dict[int, int]:
        """Write the graphs of a model whose layers may be replaced."""
        raise NotImplementedError

"""One interface to any speech representation model: a front end, then a stack of equal layers.

Similarity, pruning and mimicking use models through ``Stack``. Its subclasses are the families:
``wav2vec2`` (wav2vec 2.0, HuBERT, WavLM), ``whisper`` and ``espnet`` (encoders trained by our
recipes); ``load`` chooses among them.

    speech --front--> x --enter--> h_0 --layer--> h_1 ... --layer--> h_n --finish--> last

``x`` is the input of the stack before positions are added and before any normalisation
(arXiv 2409.16302 lets a mimic replace those too). Dropout is the only source of randomness: inputs
are not masked (SpecAugment) and layers are not dropped, which transformers would do in training
mode.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.methods.nested import NestedStack
from espnet_ext.methods.tensors import graph_tensors

RATE = 16000  # samples per second that every stack expects


class Stack(nn.Module):
    """A front end and a stack of layers that map (batch, time, width) to the same shape.

    Attributes:
        family: model type, as transformers or ESPnet name it: wav2vec2, whisper, conformer ...
        kept: indices of the remaining layers, by their place in the model that was loaded; after
            ``repeat`` from 0.
        protected: indices that ``remove`` refuses, with the reason.
    """

    def __init__(self, family: str, count: int):
        super().__init__()
        self.family = family
        self.kept: tuple[int, ...] = tuple(range(count))
        self.protected: dict[int, str] = {}

    @property
    def layers(self) -> nn.ModuleList:
        """The remaining layers."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Features of a frame, of ``x`` and of every layer's output."""
        raise NotImplementedError

    @property
    def body(self) -> list[nn.Module]:
        """The modules after the front end: positions, norms and layers."""
        raise NotImplementedError

    @property
    def architecture(self) -> dict[str, Any] | None:
        """Argument of ``load.build_stack`` for a model of these sizes; None if it cannot."""
        return None

    @property
    def num_layers(self) -> int:
        """Number of remaining layers."""
        return len(self.kept)

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (batch, time, width), zero after the end of an utterance, and frames (batch,).

        An utterance gives the same in any batch as alone.

        Args:
            speech: (batch, samples), float in [-1, 1] at 16 kHz; padding is ignored.
            lengths: (batch,), samples of each utterance.

        Raises:
            UserError: an utterance is too short for one frame, or too long for the positions.
        """
        raise NotImplementedError

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return h_0 (batch, time, width), the input of the first layer."""
        raise NotImplementedError

    def run(
        self,
        h: Tensor,
        lengths: Tensor,
        start: int = 0,
        stop: int | None = None,
        finished: bool = True,
    ) -> list[Tensor]:
        """Return the outputs of the remaining layers at places ``start`` up to ``stop``.

        Frames after the end of an utterance are undefined. Inside ``NestedStack.running`` the only
        output is that of the first member.

        Args:
            h: (batch, time, width), output of the layer before ``start``, or of ``enter``.
            lengths: frames (batch,); the layers mask the rest.
            start: place of the first layer to run.
            stop: place after the last one; None: the end.
            finished: apply ``finish`` to the output of the last layer of the stack.
        """
        context = self._context(h, lengths)

        def step(layer: nn.Module, x: Tensor) -> Tensor:
            return self._step(layer, x, context)

        outputs: list[Tensor] = []
        layers: Any = self.layers
        end = self.num_layers if stop is None else stop
        if not isinstance(layers, NestedStack) or start > 0 or stop is not None:
            layers = [layers[place] for place in range(start, end)]
        elif layers.selection.together:
            outputs, layers = [layers.run_together(step, h)], []
        for layer in layers:
            h = step(layer, h)
            outputs.append(h)
        if finished and outputs and end == self.num_layers:
            outputs[-1] = self.finish(outputs[-1])
        return outputs

    def finish(self, h: Tensor) -> Tensor:
        """Apply what follows the last layer: the final norm of a pre-norm family, else nothing."""
        raise NotImplementedError

    def states(
        self, x: Tensor, lengths: Tensor, upto: int | None = None, finished: bool = True
    ) -> list[Tensor]:
        """Return h_0 and the outputs of the first ``upto`` layers, by default all; see ``run``."""
        h = self.enter(x, lengths)
        return [h, *self.run(h, lengths, 0, upto, finished)]

    def hidden(self, x: Tensor, lengths: Tensor, upto: int | None = None) -> list[Tensor]:
        """Return the outputs (batch, time, width) of the first ``upto`` layers, by default all.

        That of the last layer is the output of the model: it includes ``finish``, a LayerNorm in
        pre-norm families (wav2vec 2.0, HuBERT and WavLM large, Whisper, ESPnet).
        """
        return self.states(x, lengths, upto)[1:]

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last output (batch, time, width) and frames (batch,); see ``front``."""
        x, lengths = self.front(speech, lengths)
        return self.hidden(x, lengths)[-1], lengths

    def remove(self, layers: Iterable[int]) -> Self:
        """Return a stack without ``layers``, which are numbered as in the loaded model.

        It shares its tensors with this one, which is not changed.

        Raises:
            UserError: a layer does not exist, is protected, or none would be left.
        """
        removed = check_layers(self, layers)
        smaller = copy_sharing_tensors(self)
        places = [place for place, index in enumerate(self.kept) if index not in removed]
        smaller._keep(places)
        smaller.kept = tuple(self.kept[place] for place in places)
        return smaller

    def select(self, remove: Iterable[int] | None, keep: Iterable[int] | None) -> Self:
        """Return the stack without the layers ``remove``, or with ``keep`` only.

        Raises:
            UserError: both are given, or an error of ``remove``.
        """
        if keep is not None:
            if remove is not None:
                raise UserError("encoder: stack: give remove or keep, not both")
            known, wanted = set(self.kept), set(keep)
            check_layers(self, wanted - known)  # refuses unknown layers
            remove = known - wanted
        removed = list(remove or ())
        return self.remove(removed) if removed else self

    def repeat(self, times: int) -> None:
        """Replace each layer by ``times`` layers that begin alike, in place.

        Where a layer adds what attention and the feed-forward network compute, each of the new ones
        adds it divided by ``times``. Together they do about what the layer did, and they can share
        weights: so trained layers start a network as deep as ResidualTransformer's.

        Raises:
            UserError: ``times`` is no number of layers, or this is no whisper.
        """
        raise UserError(f"encoder: stack: repeat is for whisper, not for {self.family}")

    def save(self, folder: str | Path) -> None:
        """Write a folder for transformers or stock ESPnet, whole or not at all.

        When it is loaded, its layers count from 0.
        """
        raise NotImplementedError

    def drop_mimicked(self, entrance: bool) -> None:
        """Drop the norm after the layers, in place: a mimic replaces it.

        ``entrance``: drop all layers too, and the positions and the norm before them.
        """
        raise NotImplementedError

    def set_sizes(self, places: Sequence[int], width: int | None) -> None:
        """Record that only the layers at ``places`` are left, and the feed-forward width."""
        raise NotImplementedError

    def _context(self, h: Tensor, lengths: Tensor) -> Any:
        """Compute what every layer needs in addition to its input: masks, positions."""
        raise NotImplementedError

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        """Run one layer."""
        raise NotImplementedError

    def _keep(self, places: Sequence[int]) -> None:
        """Keep only the layers at ``places``, in place."""
        raise NotImplementedError


class Removable(Protocol):
    """Layers that may be removed."""

    family: str
    kept: tuple[int, ...]
    protected: dict[int, str]

    @property
    def num_layers(self) -> int:
        """Layers that are left."""
        ...


def check_layers(stack: Removable, layers: Iterable[int]) -> frozenset[int]:
    """Return ``layers`` as a set.

    Raises:
        UserError: one of them cannot be removed from ``stack``, or none would be left.
    """
    removed = frozenset(layers)
    for index in sorted(removed, key=str):
        if not isinstance(index, int) or isinstance(index, bool) or index not in stack.kept:
            raise UserError(
                f"no layer {index} in this {stack.family} stack; its layers are "
                f"{', '.join(map(str, stack.kept))}"
            )
        if index in stack.protected:
            raise UserError(f"layer {index} must stay: {stack.protected[index]}")
    if len(removed) == stack.num_layers:
        raise UserError(f"all {stack.num_layers} layers asked to go; at least one must stay")
    return removed


def copy_sharing_tensors[M: nn.Module](module: M) -> M:
    """Return a copy of a module with the same parameters and buffers."""
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    shared |= {id(kept): kept.detach() for kept in graph_tensors(module)}
    return copy.deepcopy(module, shared)

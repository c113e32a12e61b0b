"""One view of any speech representation model: a front end, then a stack of equal layers.

Similarity, pruning and mimicking all read models through ``Stack``; what differs between
families stands in ``stack_transformers`` (wav2vec 2.0, HuBERT, WavLM, Whisper encoders) and
``stack_espnet`` (ESPnet's own encoders, trained by our recipes).

    speech --front--> x --enter--> h_0 --layer--> h_1 ... --layer--> h_n --finish--> last

``x`` is what enters the stack before it adds positions or normalises (arXiv 2409.16302 lets a
mimic replace those too). Nothing random happens outside dropout: neither masking of the input
(SpecAugment) nor dropping of whole layers, which transformers would do in training mode.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.nested import NestedStack

RATE = 16000  # samples per second of the speech that every stack takes
HUB = "hub:"  # before the name of a model of transformers' hub


class Stack(nn.Module):
    """A front end and a stack of layers that map (batch, time, width) to the same shape.

    Attributes:
        family: model type, as transformers or ESPnet name it: wav2vec2, whisper, conformer ...
        kept: indices of the layers still there, by their place in the model that was loaded.
        protected: indices that ``remove`` refuses, with the reason.
    """

    family: str
    protected: dict[int, str]

    def __init__(self, family: str, count: int):
        super().__init__()
        self.family = family
        self.kept: tuple[int, ...] = tuple(range(count))
        self.protected = {}

    @property
    def layers(self) -> nn.ModuleList:
        """The layers still there, first to last."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Features of a frame, of ``x`` and of every layer's output."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """How many layers are still there."""
        return len(self.kept)

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the stack, before positions and the normalisation at its entrance.

        An utterance gives the same in any batch as alone.

        Args:
            speech: (batch, samples), float in [-1, 1] at 16 kHz; padding is ignored.
            lengths: (batch,), samples of each utterance.

        Returns:
            x (batch, time, width), zero beyond an utterance's end, and frames (batch,).

        Raises:
            UserError: an utterance is too short for one frame, or too long for the positions.
        """
        raise NotImplementedError

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        """h_0 (batch, time, width), the input of the first layer, from ``front``'s output."""
        raise NotImplementedError

    def run(
        self,
        h: Tensor,
        lengths: Tensor,
        start: int = 0,
        stop: int | None = None,
        finished: bool = True,
    ) -> list[Tensor]:
        """Run the layers at places ``start`` to ``stop`` of those still there.

        Args:
            h: (batch, time, width), output of the layer at ``start`` - 1, or of ``enter``.
            lengths: frames (batch,); others see nothing of what lies beyond.
            start: place of the first layer to run.
            stop: place behind the last one; None: run to the end.
            finished: let ``finish`` follow the last layer of the stack.

        Returns:
            The output of every layer that ran, the last of the stack followed by ``finish``.
            Frames beyond an utterance's end hold no meaning.
        """
        layers: Any = self.layers
        if isinstance(layers, NestedStack) and start == 0 and stop is None:
            return self._run_nested(layers, h, lengths, finished)
        stop = self.num_layers if stop is None else stop
        context = self._context(h, lengths)
        last = self.num_layers - 1 if finished else None
        outputs = []
        for place in range(start, stop):
            h = self._step(self.layers[place], h, context)
            outputs.append(self.finish(h) if place == last else h)
        return outputs

    def _run_nested(
        self, layers: NestedStack, h: Tensor, lengths: Tensor, finished: bool
    ) -> list[Tensor]:
        """Run the layers of a family's chosen member, or of all that are ``running`` (then what
        the first of them gives is returned)."""
        context = self._context(h, lengths)
        outputs = []
        if layers.selection.together:
            outputs = [layers.run_together(lambda layer, x: self._step(layer, x, context), h)]
        else:
            for layer in layers:
                h = self._step(layer, h, context)
                outputs.append(h)
        return [*outputs[:-1], self.finish(outputs[-1])] if finished else outputs

    def finish(self, h: Tensor) -> Tensor:
        """Apply what follows the last layer: the final norm of a pre-norm family, else nothing."""
        raise NotImplementedError

    def hidden(self, x: Tensor, lengths: Tensor, upto: int | None = None) -> list[Tensor]:
        """Outputs (batch, time, width) of the first ``upto`` layers, of all by default.

        The last layer's output comes with the family's final norm, so it is what the model
        gives: in pre-norm families (wav2vec 2.0, HuBERT and WavLM large, Whisper, ESPnet) a
        LayerNorm stands there, in post-norm ones (their base sizes) nothing. Earlier outputs are
        those of the layers themselves.
        """
        return self.run(self.enter(x, lengths), lengths, 0, upto)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Last output (batch, time, width) and frames (batch,) from speech; see ``front``."""
        x, lengths = self.front(speech, lengths)
        return self.hidden(x, lengths)[-1], lengths

    def remove(self, layers: Iterable[int]) -> Self:
        """A stack without ``layers``, which are named by their place in the loaded model.

        The new stack shares its tensors with this one, which stays as it is; ``copy.deepcopy``
        makes it independent.

        Raises:
            UserError: a layer is not there, is protected, or none would be left.
        """
        gone = check_layers(self, layers)
        shared: dict[int, Any] = {id(t): t for t in [*self.parameters(), *self.buffers()]}
        for module in self.modules():
            for value in vars(module).values():
                # ESPnet's attention keeps its last weights, and deepcopy refuses a tensor with
                # a graph behind it.
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    shared[id(value)] = value.detach()
        smaller = copy.deepcopy(self, shared)
        places = [place for place, index in enumerate(self.kept) if index not in gone]
        smaller._keep(places)
        smaller.kept = tuple(self.kept[place] for place in places)
        return smaller

    def select(self, remove: Iterable[int] | None, keep: Iterable[int] | None) -> Self:
        """The stack without the layers ``remove``, or with ``keep`` only; itself if both are None.

        Raises:
            UserError: both are given, or what ``remove`` raises.
        """
        if keep is None:
            gone = list(remove or [])
        elif remove is not None:
            raise UserError("encoder: stack: give remove or keep, not both")
        else:
            here, wanted = set(self.kept), set(keep)
            check_layers(self, wanted - here)  # refuses what is none
            gone = sorted(here - wanted)
        return self.remove(gone) if gone else self

    def save(self, folder: str | Path) -> None:
        """Write the stack in its family's own format, whole or not at all.

        transformers (or stock ESPnet) loads the folder without this package. Loaded again, its
        layers count from 0.
        """
        raise NotImplementedError

    def _context(self, h: Tensor, lengths: Tensor) -> Any:
        """What every layer takes beside its input: masks, positions."""
        raise NotImplementedError

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        """Run one layer."""
        raise NotImplementedError

    def _keep(self, places: Sequence[int]) -> None:
        """Keep the layers at ``places`` of this stack's, in place."""
        raise NotImplementedError

    def take_note(self, places: Sequence[int], width: int | None) -> None:
        """Note that layers at other ``places`` are gone, and the width of feed-forward networks."""
        raise NotImplementedError


def check_layers(stack: Stack, layers: Iterable[int]) -> frozenset[int]:
    """Return ``layers`` as a set.

    Raises:
        UserError: one of them cannot be removed from ``stack``, or none would be left.
    """
    gone = frozenset(layers)
    for index in sorted(gone, key=str):
        if not isinstance(index, int) or isinstance(index, bool) or index not in stack.kept:
            raise UserError(
                f"no layer {index} in this {stack.family} stack; its layers are "
                f"{', '.join(map(str, stack.kept))}"
            )
        if index in stack.protected:
            raise UserError(f"layer {index} must stay: {stack.protected[index]}")
    if len(gone) == stack.num_layers:
        raise UserError(f"all {stack.num_layers} layers asked to go; at least one must stay")
    return gone


def load_stack(path: str | Path) -> Stack:
    """Load a model as a stack, in evaluation mode and float32.

    Args:
        path: a folder in transformers' format (config.json, model.safetensors; model types
            wav2vec2, hubert, wavlm, whisper); or an experiment of our recipes, ``exp/<tag>`` or
            its ``deploy/<variant>``; or ``hub:NAME``, a model that transformers' own loader
            finds in its cache or fetches. Only tensors are read, never code.

    Raises:
        UserError: no such folder, unknown family, or weights that are damaged, lacking, or of
            other shapes than the config says.
    """
    name = str(path)
    if name.startswith(HUB):
        from espnet_ext.encoders.pretrained.transformers import load_transformers

        return load_transformers(name.removeprefix(HUB), None)
    folder = Path(path)
    for form in sorted(folder.glob("deploy/*/stack")):  # an experiment with encoder: stack
        return load_stack(form)
    if (folder / "config.json").is_file():
        from espnet_ext.encoders.pretrained.transformers import load_transformers

        return load_transformers(name, _family_of(folder / "config.json"))
    if any(folder.glob("deploy/*/config.yaml")) or (folder / "config.yaml").is_file():
        from espnet_ext.encoders.pretrained.espnet import load_espnet

        return load_espnet(folder)
    if not folder.is_dir():
        raise UserError(f"no model folder {path}; a model of transformers' hub is {HUB}NAME")
    raise UserError(
        f"{path} holds no model: neither config.json with model.safetensors (transformers) "
        "nor config.yaml with model.pth (ESPnet, written by stage 5)"
    )


def _family_of(config: Path) -> str:
    """The ``model_type`` of a config.json, which must be one that is known here."""
    families = ("hubert", "wav2vec2", "wavlm", "whisper")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config}: not valid JSON: {error}") from None
    family = content.get("model_type") if isinstance(content, dict) else None
    if family not in families:
        raise UserError(f"{config}: unknown model family {nearest(str(family), families)}")
    return family

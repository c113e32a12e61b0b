"""ESPnet encoder ``stack``: a speech representation model under a head of ESPnet's."""

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_ext.encoders.frozen_cache import digest, remembered
from espnet_ext.encoders.pretrained.mimicked import MimickedStack, parse_mimic, stack_parts
from espnet_ext.encoders.pretrained.stack import Stack, load_stack
from espnet_ext.encoders.pretrained.transformers import architecture_of, build_transformers
from espnet_ext.errors import UserError
from espnet_ext.methods.nested import apply_nested, nested_stack
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.registry import METHODS

FRONT = "front"  # the value of ``frozen`` that leaves the layers to be trained
_without_files: ContextVar[bool] = ContextVar("without_files", default=False)


@contextlib.contextmanager
def without_files() -> Iterator[None]:
    """Inside, a stack with an ``architecture`` is built of random weights if its folder is absent.

    For looking at a config (check, footprint) before anything was fetched.
    """
    token = _without_files.set(True)
    try:
        yield
    finally:
        _without_files.reset(token)


class StackEncoder(AbsEncoder):
    """Encoder ``stack``, for ``frontend: raw`` and no ``normalize``.

    A probe is a classifier (``recipe: {task: cls}``) with this encoder frozen and the head
    ``decoder: mlp``. The model's folder is read whenever the encoder is built; a checkpoint
    then brings the trained weights.
    """

    def __init__(
        self,
        input_size: int,
        path: str | None = None,
        frozen: bool | str = True,
        remove: Sequence[int] | None = None,
        keep: Sequence[int] | None = None,
        upto: int | None = None,
        architecture: dict | None = None,
        mimic: dict | None = None,
        nested: dict | None = None,
        cache_gb: float = 0.0,
    ):
        """Load the model.

        Args:
            input_size: 1, what ``frontend: raw`` gives.
            path: of the model; see ``stack.load_stack``. None: random weights.
            frozen: train nothing of it, or with ``front`` nothing of the front end; what is frozen
                also runs without dropout. A mimic is trained in any case but its own.
            remove: layers to leave out.
            keep: layers to keep, the others are left out; not together with ``remove``.
            upto: read the output of the first ``upto`` of the layers left; None: of all.
            architecture: keys of transformers' config.json (model_type, ...): what to build
                where there is no ``path``.
            mimic: options of a network that replaces the last layers, those of
                ``methods.mimic.MimicOptions``; also ``path`` of what step 1 trained (None: random
                weights) and ``frozen``: train nothing of it.
            nested: options of a family of sub-networks of the stack, of a model of transformers;
                those of ``methods.nested_options.NestedOptions``.
            cache_gb: memory that a training may take to keep what the frozen part gives, so that
                it is computed once, not in every epoch. An encoder of ESPnet's, whose
                convolutions see the padding of a batch, then sees each utterance alone.

        Raises:
            UserError: an option that does not fit the model, or what ``load_stack`` raises.
        """
        super().__init__()
        if input_size != 1:
            raise UserError("encoder: stack takes samples: choose frontend: raw and no normalize")
        if frozen not in (True, False, FRONT):
            raise UserError(
                f"encoder: stack: frozen must be true, false or {FRONT}, not {frozen!r}"
            )
        whole = _find_stack(path, architecture).select(remove, keep)
        if upto is not None and not 1 <= upto <= whole.num_layers:
            raise UserError(f"encoder: stack: upto: {upto} is not in 1..{whole.num_layers}")
        if not cache_gb >= 0:
            raise UserError(f"encoder: stack: cache_gb must be 0 or more, not {cache_gb}")
        self.architecture = architecture_of(whole)
        self.cache_gb = cache_gb
        self._digest: str | None = None
        self.upto = upto
        self.frozen = frozen
        self.stack: Stack | MimickedStack = whole
        if nested is not None:
            self._nest(whole, nested, mimic)
        if mimic is not None:
            self.stack = self._mimicked(whole, mimic)
        else:
            self._freeze(whole)

    def _nest(self, whole: Stack, conf: dict, mimic: dict | None) -> None:
        """Make a family of the stack, in place."""
        if mimic is not None or self.upto is not None or self.frozen is True:
            raise UserError(
                "encoder: stack: nested needs frozen: false or front, no mimic, no upto"
            )
        if self.architecture is None:
            raise UserError(
                "encoder: stack: nested is for models of transformers; of ESPnet's encoders take "
                "nested_conformer or the like"
            )
        apply_nested(whole, METHODS["nested"].parse(conf))
        family: Any = nested_stack(whole)
        for member in family.family:
            for layer in set(whole.protected) - set(member.layers):
                raise UserError(
                    f"nested: {member.name} lacks layer {layer}: {whole.protected[layer]}"
                )

    def member_extracted(self, member: Member) -> None:
        """Note which sub-network this has become; ``deploy`` calls it."""
        assert isinstance(self.stack, Stack)
        self.stack.take_note(member.layers, member.width)
        self.architecture = architecture_of(self.stack)

    def after_norm(self, h: Tensor) -> Tensor:
        """What follows the last layer, of any depth."""
        assert isinstance(self.stack, Stack)
        return self.stack.finish(h)

    def _mimicked(self, whole: Stack, conf: Mapping[str, Any]) -> MimickedStack:
        if self.upto is not None:
            raise UserError("encoder: stack: upto has no meaning beside mimic")
        mimicked = MimickedStack(whole, parse_mimic(conf))
        if conf.get("path") is not None:
            mimicked.load(Path(conf["path"]))
        self._freeze(mimicked.stack)
        if conf.get("frozen", False):
            mimicked.mimic.requires_grad_(False)
        return mimicked

    def _freeze(self, stack: Stack) -> None:
        """Stop the gradients of what is frozen."""
        if self.frozen:
            stack.requires_grad_(False)
        if self.frozen == FRONT:
            for part in stack_parts(stack):
                part.requires_grad_(True)

    @property
    def encoders(self) -> nn.ModuleList:
        """The layers, or mimics, under the name that ESPnet's encoders have for them."""
        if isinstance(self.stack, MimickedStack):
            return nn.ModuleList([*self.stack.stack.layers, *self.stack.mimic.parts])
        return self.stack.layers

    @property
    def stack_only(self) -> nn.ModuleList:
        """All behind the front end: positions, norms and layers, or what replaces them."""
        if isinstance(self.stack, MimickedStack):
            return nn.ModuleList([*stack_parts(self.stack.stack), self.stack.mimic])
        return nn.ModuleList(stack_parts(self.stack))

    def portable_conf(self, conf: Mapping[str, Any]) -> dict[str, Any]:
        """``encoder_conf`` that builds this encoder where no file of the model is."""
        found = dict(conf)
        if found.get("mimic") is not None:
            found["mimic"] = {**found["mimic"], "path": None}
        if self.architecture is not None:
            gone = dict.fromkeys(("path", "remove", "keep"))
            found |= {**gone, "architecture": self.architecture}
        return found

    def output_size(self) -> int:
        """Features of a frame."""
        return self.stack.width

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode samples (batch, samples, 1); return (batch, frames, width), lengths, None."""
        self._without_dropout(self._below)
        x, lengths = xs_pad.squeeze(-1), ilens
        if self.frozen:
            with torch.no_grad():
                x, lengths = remembered(self._name, self._fixed, x, lengths, self.cache_gb)
        else:
            x, lengths = self._below.front(x, lengths)
        if self.frozen is not True:
            x = self._layers(x, lengths)
        if isinstance(self.stack, MimickedStack):
            x = self.stack.mimic(x, lengths)[-1]
        return x, lengths, None

    @property
    def _below(self) -> Stack:
        """The front end and the layers that no mimic replaces."""
        stack = self.stack.stack if isinstance(self.stack, MimickedStack) else self.stack
        assert isinstance(stack, Stack)
        return stack

    def _layers(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Behind the front end, up to the output or the first mimic."""
        if isinstance(self.stack, MimickedStack):
            return self.stack.before(x, lengths)
        return self.stack.hidden(x, lengths, self.upto)[-1]

    def _fixed(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is frozen."""
        x, lengths = self._below.front(speech, lengths)
        return (self._layers(x, lengths) if self.frozen is True else x), lengths

    def _name(self) -> tuple[Hashable, ...]:
        """What decides the output of ``_fixed``, but for the utterance."""
        if self._digest is None:
            self._digest = digest(self._below)
        first = self.stack.first if isinstance(self.stack, MimickedStack) else None
        depth = (self._below.kept, self.upto, first) if self.frozen is True else ()
        return (self._digest, self.frozen, *depth)

    def _without_dropout(self, below: Stack) -> None:
        """Put what is frozen into evaluation mode: ESPnet's trainer has all of it in training."""
        if self.frozen:
            below.eval()
        if self.frozen == FRONT:
            for part in stack_parts(below):
                part.train(self.training)
        if isinstance(self.stack, MimickedStack):
            trained = any(p.requires_grad for p in self.stack.mimic.parameters())
            self.stack.mimic.train(self.training and trained)


def _find_stack(path: str | None, architecture: dict | None) -> Stack:
    """Load ``path``, or build ``architecture`` where that is asked for."""
    if path is None and architecture is None:
        raise UserError("encoder: stack: give the path of a model, or an architecture to build")
    absent = path is None or (_without_files.get() and not Path(path).exists())
    if architecture is not None and absent:
        return build_transformers(architecture)
    assert path is not None
    stack = load_stack(path)
    if architecture is not None and (found := architecture_of(stack)) is not None:
        for key, value in architecture.items():
            if found.get(key, value) != value:
                raise UserError(
                    f"{path} has {key} {found[key]!r}, encoder_conf: architecture says {value!r}"
                )
    return stack

"""ESPnet encoder ``stack``: a speech representation model under a head of ESPnet's."""

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.specaug.specaug import SpecAug
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.encoders.frozen_cache import FrozenCache, computation_of, digest
from espnet_ext.encoders.pretrained.chunk_mask import read_chunks
from espnet_ext.encoders.pretrained.load import load_or_build
from espnet_ext.encoders.pretrained.mimicked import MimicConf, MimickedStack
from espnet_ext.encoders.pretrained.stack import RATE, Stack
from espnet_ext.encoders.pretrained.wav2vec2 import Wav2Vec2Stack
from espnet_ext.encoders.pretrained.whisper import WhisperStack
from espnet_ext.errors import UserError, one_line
from espnet_ext.methods.mimic import MimicNetwork
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.registry import chosen_methods
from espnet_ext.methods.start import apply_to_trained

FRONT = "front"  # the value of ``frozen`` that trains the layers


class StackEncoder(AbsEncoder):
    """Encoder ``stack``, for ``frontend: raw`` and no ``normalize``.

    A probe is a classifier (``recipe: {task: cls}``) with this encoder frozen and the head
    ``decoder: mlp``. The folder of the model is read whenever the encoder is built; a checkpoint
    then brings the trained weights.

    Attributes:
        cache: keeps the outputs of the frozen part; see ``caching``.
    """

    def __init__(
        self,
        input_size: int,
        path: str | None = None,
        frozen: bool | str = True,
        remove: Sequence[int] | None = None,
        keep: Sequence[int] | None = None,
        repeat: int = 1,
        upto: int | None = None,
        outputs: int = 1,
        architecture: dict | None = None,
        mimic: dict | None = None,
        nested: dict | None = None,
        hrf: dict | None = None,
        residual: dict | None = None,
        cache_gb: float = 0.0,
        pad_to: float = 0.0,
        masks: dict | None = None,
        chunks: dict | None = None,
    ):
        """Load the model.

        Args:
            input_size: 1, the output size of ``frontend: raw``.
            path: of the model; see ``load.load_stack``. None: random weights.
            frozen: train nothing of the model, or with ``front`` nothing of its front end; frozen
                parts run without dropout. A mimic is trained unless its section says ``frozen``.
            remove: layers to leave out.
            keep: layers to keep, the others are left out; not together with ``remove``.
            repeat: put so many layers in the place of each remaining one, each with that part of
                its step; for whisper. See ``Stack.repeat``.
            upto: read the output of the first ``upto`` remaining layers; None: of all.
            outputs: how many outputs are joined along the features, counted back from the last,
                which alone has the final norm. The input of the first layer counts as one; with
                ``mimic: {first: 0}`` that is the output of the front end.
            architecture: keys of transformers' config.json (model_type, ...): what to build
                if there is no ``path``.
            mimic: section of a network that replaces the last layers; see ``mimicked.MimicConf``.
            nested: section of a family of sub-networks of the stack, for models of transformers;
                see ``methods.nested_options.NestedOptions``.
            hrf: section of HRF on the layers, which start exactly as they are; see
                ``methods.hrf.HRFOptions``.
            residual: section of layers that share weights and start as near as residuals allow;
                see ``methods.residual.ResidualOptions``.
            cache_gb: memory that a training may use to keep the outputs of the frozen part, so
                that they are computed once, not in every epoch. An encoder of ESPnet's, whose
                convolutions see the padding of a batch, then sees each utterance alone.
            pad_to: seconds that shorter speech is filled up to with silence; an untrained Whisper
                needs 30.
            masks: options of ESPnet's SpecAug for masks on log-mel in training; for whisper.
            chunks: milliseconds of the chunks within which layers attend, for streaming:
                chunk_ms, a multiple of 20, and history_ms before it (4000). ``whole`` is the
                share of training batches that attend to everything (0); above 0 the second pass
                does so too. For whisper.

        Raises:
            UserError: an option that does not fit the model, or an error of ``load_stack``.
        """
        super().__init__()
        _refuse(input_size, frozen, cache_gb=cache_gb, pad_to=pad_to)
        whole = load_or_build(path, architecture).select(remove, keep)
        if repeat != 1 or isinstance(repeat, bool):
            whole.repeat(repeat)
        if upto is not None and not 1 <= upto <= whole.num_layers:
            raise UserError(f"encoder: stack: upto: {upto} is not in 1..{whole.num_layers}")
        self.architecture = whole.architecture
        self.cache_gb, self.upto, self.frozen, self.repeated = cache_gb, upto, frozen, repeat > 1
        self.cache: FrozenCache | None = None
        self._digest: str | None = None
        self.stack: Stack | MimickedStack = whole
        self.outputs = outputs
        self._compress(whole, {"hrf": hrf, "nested": nested, "residual": residual}, mimic)
        if mimic is not None:
            self._replace_by_mimic(whole, MimicConf.parse(mimic))
        self._refuse_outputs(nested)
        self._freeze()
        self.pad_to = round(pad_to * RATE)
        if masks is not None:
            self._mask(masks)
        if chunks is not None:
            if not isinstance(self.base, WhisperStack):
                raise UserError("encoder: stack: chunks needs a whisper")
            self.base.chunks = read_chunks(chunks)

    def _mask(self, options: dict) -> None:
        """Mask log-mel in training."""
        if self.frozen or not isinstance(self.base, WhisperStack):
            raise UserError("encoder: stack: masks needs a whisper and frozen: false")
        try:
            self.base.augment = SpecAug(**options)
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"encoder: stack: masks: {one_line(error)}") from None

    def _compress(self, whole: Stack, sections: dict[str, dict | None], mimic: dict | None) -> None:
        """Apply methods to the trained layers, in place."""
        chosen = chosen_methods(sections)
        for method, _ in chosen:
            if mimic is not None or self.frozen is True:
                raise UserError(
                    f"encoder: stack: {method.name} needs frozen: false or front, and no mimic"
                )
        if sections["nested"] is not None:
            self._refuse_no_family()
        if chosen:
            apply_to_trained(whole, *chosen)
        family: Any = nested_stack(whole)
        for member in family.family if family is not None else ():
            for layer in set(whole.protected) - set(member.layers):
                raise UserError(
                    f"nested: {member.name} lacks layer {layer}: {whole.protected[layer]}"
                )

    def _refuse_no_family(self) -> None:
        if self.upto is not None:
            raise UserError("encoder: stack: nested needs all layers: leave out upto")
        if self.architecture is None:
            raise UserError(
                "encoder: stack: nested is for models of transformers; for ESPnet's encoders "
                "choose nested_conformer or the like"
            )

    def _replace_by_mimic(self, whole: Stack, section: MimicConf) -> None:
        """Replace the last layers by a mimic, with the weights of step 1 if there is a path."""
        if self.upto is not None or self.repeated:
            raise UserError("encoder: stack: upto, repeat have no meaning together with mimic")
        self.stack = MimickedStack(whole, section)
        if section.path is not None:
            self.stack.load(Path(section.path))
        if section.frozen:
            self.stack.mimic.requires_grad_(False)

    def _refuse_outputs(self, nested: dict | None) -> None:
        """Raise UserError if there are fewer outputs than ``outputs``."""
        if self.outputs != 1 and nested is not None:
            raise UserError("encoder: stack: outputs has no meaning together with nested")
        if isinstance(self.stack, MimickedStack):
            most = self.stack.first + 1 + len(self.stack.mimic.parts)
        else:
            most = (self.upto or self.stack.num_layers) + 1
        if isinstance(self.outputs, bool) or not 1 <= self.outputs <= most:
            raise UserError(f"encoder: stack: outputs: {self.outputs} is not in 1..{most}")

    def _freeze(self) -> None:
        """Stop the gradients of what is frozen."""
        if self.frozen:
            self.base.requires_grad_(False)
        if self.frozen == FRONT:
            for part in self.base.body:
                part.requires_grad_(True)

    @property
    def base(self) -> Stack:
        """The front end and the layers that no mimic replaces."""
        return self.stack.stack if isinstance(self.stack, MimickedStack) else self.stack

    @property
    def most_samples(self) -> int | None:
        """Samples of the longest speech that the model has positions for; None: any length."""
        return getattr(self.base, "most_samples", None)

    @property
    def mimic(self) -> MimicNetwork | None:
        """The mimics, if any."""
        return self.stack.mimic if isinstance(self.stack, MimickedStack) else None

    @property
    def encoders(self) -> nn.ModuleList:
        """Layers and mimics, under the name that ESPnet's encoders use for layers."""
        if self.mimic is None:
            return self.base.layers
        return nn.ModuleList([*self.base.layers, *self.mimic.parts])

    @property
    def stack_only(self) -> nn.ModuleList:
        """Everything after the front end: positions, norms, layers and mimics."""
        return nn.ModuleList(self.base.body + ([] if self.mimic is None else [self.mimic]))

    def after_norm(self, h: Tensor) -> Tensor:
        """Apply what follows the last layer, at any depth of a family."""
        return self.base.finish(h)

    def member_extracted(self, member: Member) -> None:
        """Record the sizes of a member that ``deploy`` has extracted (``FamilyOwner``)."""
        self.base.set_sizes(member.layers, member.width)
        self.architecture = self.base.architecture

    def portable_conf(self, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``encoder_conf`` that builds this encoder without any file of the model."""
        found = dict(conf)
        if found.get("mimic") is not None:
            found["mimic"] = {**found["mimic"], "path": None}
        if self.architecture is not None:
            found |= {"path": None, "remove": None, "keep": None, "repeat": 1}
            found |= {"architecture": self.architecture}
        return found

    def output_size(self) -> int:
        """Features of a frame."""
        return self.stack.width * self.outputs

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode samples (batch, samples, 1); return (batch, frames, features), lengths, None."""
        self._set_modes()
        x, lengths = xs_pad.squeeze(-1), ilens
        if x.shape[1] < self.pad_to:
            x = F.pad(x, (0, self.pad_to - x.shape[1]))
        lengths = lengths.clamp(min=self.pad_to)
        if self.frozen:
            with torch.no_grad():
                x, lengths = self._frozen_outputs(x, lengths)
        else:
            x, lengths = self.base.front(x, lengths)
        if self.frozen is not True:
            x = self._layers(x, lengths)
        return self._mimicked(x, lengths), lengths, None

    def encode_features(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode what the convolutions of a model read, as ``forward`` encodes samples.

        Args:
            x: log-mel (batch, time, bins) of a Whisper, else the samples of one utterance (1, n, 1)
                as the model normalises them.
            lengths: of the utterances (batch,).
        """
        assert isinstance(self.base, WhisperStack | Wav2Vec2Stack)
        self._set_modes()
        x, lengths = self.base.convolved(x, lengths)
        x = self._layers(x, lengths)
        return self._mimicked(x, lengths), lengths

    @property
    def _states(self) -> int:
        """How many outputs ``_layers`` returns side by side: those that no mimic computes."""
        return max(1, self.outputs - (len(self.mimic.parts) if self.mimic is not None else 0))

    def _layers(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Run what follows the front end; return the outputs that no mimic computes."""
        count = self._states
        if isinstance(self.stack, MimickedStack):
            states = self.stack.before(x, lengths)
        else:
            states = self.stack.states(x, lengths, self.upto)
        return states[-1] if count == 1 else torch.cat(states[-count:], dim=-1)

    def _mimicked(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Run the mimics, if any, on what ``_layers`` returned, and join their outputs to it."""
        if self.mimic is None:
            return x
        found = self.mimic(x[..., -self.stack.width :], lengths)
        if self.outputs == 1:
            return found[-1]
        return torch.cat([x, *found], dim=-1)[..., -self.output_size() :]

    def _frozen_part(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.base.front(speech, lengths)
        return (self._layers(x, lengths) if self.frozen is True else x), lengths

    def _frozen_outputs(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the frozen part, in a training from the cache if known."""
        if self.cache is None or self.cache_gb == 0:
            return self._frozen_part(speech, lengths)
        key = (*self._frozen_key(), *computation_of(speech.device))
        return self.cache(key, self._frozen_part, speech, lengths, self.cache_gb)

    def _frozen_key(self) -> tuple[Hashable, ...]:
        """Everything that decides the outputs of the frozen part, except the utterance."""
        if self._digest is None:
            self._digest = digest(self.base)
        first = self.stack.first if isinstance(self.stack, MimickedStack) else None
        depth = (self.base.kept, self.upto, first, self._states) if self.frozen is True else ()
        return (self._digest, self.frozen, *depth)

    def _set_modes(self) -> None:
        """Put what is frozen into evaluation mode: ESPnet's trainer puts all into training mode."""
        if self.frozen:
            self.base.eval()
        if self.frozen == FRONT:
            for part in self.base.body:
                part.train(self.training)
        if self.mimic is not None:
            trained = any(p.requires_grad for p in self.mimic.parameters())
            self.mimic.train(self.training and trained)


def _refuse(input_size: int, frozen: bool | str, **amounts: float) -> None:
    """Raise UserError for options that no model fits."""
    if input_size != 1:
        raise UserError("encoder: stack reads samples: choose frontend: raw and no normalize")
    if frozen not in (True, False, FRONT):
        raise UserError(f"encoder: stack: frozen must be true, false or {FRONT}, not {frozen!r}")
    for name, value in amounts.items():
        if not value >= 0:
            raise UserError(f"encoder: stack: {name} must be 0 or more, not {value}")


@contextlib.contextmanager
def caching(model: nn.Module, cache: FrozenCache) -> Iterator[None]:
    """Let the stack encoders of ``model`` use ``cache`` inside the block, during a training."""
    encoders = [module for module in model.modules() if isinstance(module, StackEncoder)]
    for encoder in encoders:
        encoder.cache = cache
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.cache = None

"""Stacks of the transformers package: wav2vec 2.0, HuBERT, WavLM and Whisper encoders."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.encoders.pretrained.stack import HUB, RATE, Stack
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import atomic_path

_SPEECH_CONFIG = "preprocessor_config.json"
_NORMALISE = "do_normalize"  # its key
_OF_FILES = ("architectures", "dtype", "transformers_version", "_name_or_path")
# What transformers and safetensors raise for a folder that is not whole or does not fit.
_LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)
# Weights that a stack has no use for: of pre-training, and of heads on top.
_MASKING = "masked_spec_embed"


class Wav2Vec2Stack(Stack):
    """wav2vec 2.0, HuBERT or WavLM: convolutions over samples, then the stack.

    ``x`` is the output of the feature projection; ``enter`` adds the positional convolution and,
    in post-norm models, normalises.
    """

    def __init__(self, model: Any, family: str, normalise: bool):
        """Wrap ``model`` (Wav2Vec2Model, HubertModel, WavLMModel).

        ``normalise``: bring each utterance to mean 0 and variance 1 first, as the model's
        feature extractor does.
        """
        super().__init__(family, len(model.encoder.layers))
        self.model = model
        self.normalise = normalise
        self.pre_norm = bool(model.config.do_stable_layer_norm)
        if family == "wavlm":
            self.protected = {0: "WavLM's first layer makes the position bias of the later ones"}

    @property
    def layers(self) -> nn.ModuleList:
        """The layers still there."""
        return self.model.encoder.layers

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.model.config.hidden_size

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the feature projection; see ``Stack.front``."""
        frames = lengths
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
        if int(frames.min()) < 1:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is too short for {self.family}"
            )
        waves = [wave[:size] for wave, size in zip(speech, lengths.tolist(), strict=True)]
        if self.normalise:
            waves = [
                (w - w.mean()) / torch.sqrt(w.var(correction=0) + 1e-7) for w in map(_float, waves)
            ]
        if config.feat_extract_norm == "group":
            # Its statistics go over time: padding must not enter them.
            found = [self._frames(wave.unsqueeze(0))[0] for wave in waves]
            return pad_sequence(found, batch_first=True), frames
        x = self._frames(pad_sequence(waves, batch_first=True))[:, : int(frames.max())]
        return x.masked_fill(~_within(frames, x).unsqueeze(-1), 0.0), frames

    def _frames(self, waves: Tensor) -> Tensor:
        """Convolutions and projection: (batch, samples) to (batch, time, width)."""
        features = self.model.feature_extractor(waves.contiguous()).transpose(1, 2)
        projected = self.model.feature_projection(features)
        return projected[0] if isinstance(projected, tuple) else projected

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Add positions, normalise (post-norm models); see ``Stack.enter``."""
        encoder = self.model.encoder
        x = x.masked_fill(~_within(lengths, x).unsqueeze(-1), 0.0)
        h = x + encoder.pos_conv_embed(x)
        return encoder.dropout(h if self.pre_norm else encoder.layer_norm(h))

    def finish(self, h: Tensor) -> Tensor:
        """Apply the final norm of a pre-norm model."""
        return self.model.encoder.layer_norm(h) if self.pre_norm else h

    def _context(self, h: Tensor, lengths: Tensor) -> dict[str, Any]:
        inside = _within(lengths, h)
        if self.family != "wavlm":
            return {"attention_mask": _additive(inside, h.dtype)}
        attention: Any = self.layers[0].attention
        bias = attention.compute_bias(h.shape[1], h.shape[1])
        bias = bias.repeat(h.shape[0], 1, 1)  # (batch * heads, time, time)
        return {"attention_mask": None if inside.all() else inside, "position_bias": bias}

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        found = layer(h, **context)
        return found[0] if isinstance(found, tuple) else found

    def _keep(self, places: Sequence[int]) -> None:
        encoder = self.model.encoder
        encoder.layers = nn.ModuleList(encoder.layers[place] for place in places)
        self.model.config.num_hidden_layers = len(places)

    def take_note(self, places: Sequence[int], width: int | None) -> None:
        """Put sizes into the config; see ``Stack.take_note``."""
        self.kept = tuple(self.kept[place] for place in places)
        self.model.config.num_hidden_layers = len(places)
        self.model.config.intermediate_size = width

    def save(self, folder: str | Path) -> None:
        """Write transformers' folder: config.json, model.safetensors, preprocessor_config.json."""
        from transformers import Wav2Vec2FeatureExtractor

        extractor = Wav2Vec2FeatureExtractor(do_normalize=self.normalise, sampling_rate=RATE)
        _save(self.model, extractor, folder)


class WhisperStack(Stack):
    """The encoder of Whisper: log-mel, two convolutions, then a pre-norm stack.

    ``x`` is the output of the convolutions; ``enter`` adds the positions. Speech is taken as
    long as it is, not padded to 30 seconds as Whisper's decoder expects it, and at most that
    long. Whisper was trained on transcribed speech: it is no self-supervised model.
    """

    def __init__(self, model: Any):
        """Wrap a WhisperEncoder."""
        from transformers import WhisperFeatureExtractor

        super().__init__("whisper", len(model.layers))
        self.model = model
        self.extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers still there."""
        return self.model.layers

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.model.config.d_model

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the two convolutions, 50 frames a second; see ``Stack.front``."""
        most = self.model.max_source_positions * 2 * self.extractor.hop_length
        if int(lengths.max()) > most:
            raise UserError(
                f"an utterance of {int(lengths.max()) / RATE:.1f} s is longer than the "
                f"{most / RATE:.0f} s that Whisper has positions for; cut it"
            )
        if int(lengths.min()) < self.extractor.n_fft:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is too short for whisper"
            )
        mels = [self._mel(w[:n]) for w, n in zip(speech, lengths.tolist(), strict=True)]
        sizes = torch.tensor([len(mel) for mel in mels], device=speech.device)
        mel = pad_sequence(mels, batch_first=True)
        # A convolution pads with zeros; the second must find those behind a shorter utterance.
        inner = F.gelu(self.model.conv1(mel.transpose(1, 2)))
        inner = inner.masked_fill(~_within(sizes, mel).unsqueeze(1), 0.0)
        x = F.gelu(self.model.conv2(inner)).transpose(1, 2)
        frames = (sizes + 1) // 2
        return x.masked_fill(~_within(frames, x).unsqueeze(-1), 0.0), frames

    def _mel(self, wave: Tensor) -> Tensor:
        """Log-mel (time, bins) of one wave (samples,), by transformers' own extractor."""
        with torch.autocast("cpu", enabled=False):  # it asks torch for numpy arrays on the way
            found = self.extractor(
                wave.detach().float().cpu().numpy(),
                sampling_rate=RATE,
                padding="longest",
                truncation=False,
                return_tensors="pt",
            )
        return found["input_features"][0].T.to(wave.device, self.model.conv1.weight.dtype)

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Add the positions; see ``Stack.enter``."""
        h = x + self.model.embed_positions.weight[: x.shape[1]]
        return F.dropout(h, p=self.model.dropout, training=self.training)

    def finish(self, h: Tensor) -> Tensor:
        """Apply the final norm."""
        return self.model.layer_norm(h)

    def _context(self, h: Tensor, lengths: Tensor) -> Tensor | None:
        return _additive(_within(lengths, h), h.dtype)

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        return layer(h, context)

    def _keep(self, places: Sequence[int]) -> None:
        self.model.layers = nn.ModuleList(self.model.layers[place] for place in places)
        self.model.config.encoder_layers = len(places)

    def take_note(self, places: Sequence[int], width: int | None) -> None:
        """Put sizes into the config; see ``Stack.take_note``."""
        self.kept = tuple(self.kept[place] for place in places)
        self.model.config.encoder_layers = len(places)
        self.model.config.encoder_ffn_dim = width

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers' ``WhisperEncoder.from_pretrained`` reads."""
        _save(self.model, self.extractor, folder)


def load_transformers(name: str, family: str | None) -> Stack:
    """Load a folder (``family`` is its model type) or, if ``family`` is None, a model of the hub.

    Raises:
        UserError: see ``stack.load_stack``.
    """
    import transformers

    with _quiet():
        if family is None:
            try:
                family = str(transformers.AutoConfig.from_pretrained(name).model_type)
            except _LOAD_ERRORS as error:
                raise UserError(f"{HUB}{name}: {_line(error)}") from None
            local = False
        else:
            local = True
        loader = {
            "wav2vec2": transformers.Wav2Vec2Model,
            "hubert": transformers.HubertModel,
            "wavlm": transformers.WavLMModel,
        }.get(family)
        if loader is not None:
            model = _read(loader, name, local)
            return Wav2Vec2Stack(model, family, _normalises(name, local)).eval()
        if family != "whisper":
            known = ("hubert", "wav2vec2", "wavlm", "whisper")
            raise UserError(f"{HUB}{name}: unknown model family {nearest(family, known)}")
        return WhisperStack(_read_whisper(name, local)).eval()


def build_transformers(architecture: Mapping[str, Any]) -> Stack:
    """Build a model of random weights from keys of transformers' config.json.

    Args:
        architecture: ``model_type`` and whatever differs from the defaults of its config; and
            ``do_normalize`` of the feature extractor.

    Raises:
        UserError: unknown family or key, or values that make no model.
    """
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    conf = dict(architecture)
    family, normalise = str(conf.pop("model_type", None)), bool(conf.pop(_NORMALISE, True))
    classes: dict[str, tuple[Any, Any]] = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
        "whisper": (transformers.WhisperConfig, WhisperEncoder),
    }
    if family not in classes:
        raise UserError(f"architecture: unknown model_type {nearest(family, classes)}")
    config_class, model_class = classes[family]
    known = config_class().to_dict()
    for key in conf:
        if key not in known:
            raise UserError(f"architecture: unknown key of {family} {nearest(str(key), known)}")
    try:
        model = model_class(config_class(**conf))
    except Exception as error:  # of transformers' checks, many types
        raise UserError(f"architecture: no {family} can be built of it: {_line(error)}") from None
    stack = WhisperStack(model) if family == "whisper" else Wav2Vec2Stack(model, family, normalise)
    return stack.eval()


def architecture_of(stack: Stack) -> dict[str, Any] | None:
    """What ``build_transformers`` makes a model of this shape of; None for other stacks."""
    if not isinstance(stack, Wav2Vec2Stack | WhisperStack):
        return None
    found = stack.model.config.to_diff_dict()
    found = {k: v for k, v in found.items() if k not in _OF_FILES}
    if isinstance(stack, Wav2Vec2Stack):
        found[_NORMALISE] = stack.normalise
    return found


def _read_whisper(name: str, local: bool) -> Any:
    """The WhisperEncoder of a folder that holds it alone, or a whole model."""
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        config = transformers.WhisperConfig.from_pretrained(name, local_files_only=local)
    except _LOAD_ERRORS as error:
        raise UserError(f"{name}: {_line(error)}") from None
    made = (config.architectures or ["WhisperModel"])[0]
    if made == "WhisperEncoder":
        return _read(WhisperEncoder, name, local)
    if made == "WhisperForAudioClassification":
        return _read(transformers.WhisperForAudioClassification, name, local).encoder
    return _read(transformers.WhisperModel, name, local).encoder


def _read(loader: Any, name: str, local: bool) -> Any:
    """Build a model and load its weights, all of them and none that does not fit."""
    try:
        model, found = loader.from_pretrained(
            name,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise UserError(f"{name}: cannot load it: {_line(error)}") from None
    except Exception as error:  # safetensors has an exception of its own, from Rust
        if type(error).__module__.split(".")[0] != "builtins" and "afetensor" in repr(error):
            raise UserError(f"{name}: damaged model.safetensors: {_line(error)}") from None
        raise
    lacking = sorted(key for key in found["missing_keys"] if _MASKING not in key)
    if lacking:
        raise UserError(f"{name}: its weights are of another model: they lack {lacking[0]}")
    return model


def _normalises(name: str, local: bool) -> bool:
    """Whether the model wants utterances of mean 0 and variance 1; transformers' default: yes."""
    if local and not Path(name, _SPEECH_CONFIG).is_file():
        return True
    if local:
        try:
            content = json.loads(Path(name, _SPEECH_CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{name}/{_SPEECH_CONFIG}: not valid JSON: {error}") from None
        return bool(content.get(_NORMALISE, True))
    from transformers import Wav2Vec2FeatureExtractor

    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize)
    except _LOAD_ERRORS:
        return True


def _save(model: Any, extractor: Any, folder: str | Path) -> None:
    with _quiet(), atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        extractor.save_pretrained(temporary)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports to errors for a while."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    """The first line of what an exception says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[0][:200] if said else type(error).__name__


def _float(wave: Tensor) -> Tensor:
    return wave.float()


def _within(lengths: Tensor, x: Tensor) -> Tensor:
    """(batch, time), True for frames of the utterance; ``x`` is (batch, time, ...)."""
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)


def _additive(inside: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores, (batch, 1, time, time); None if nothing is masked."""
    if inside.all():
        return None
    mask = torch.zeros(inside.shape, dtype=dtype, device=inside.device)
    mask = mask.masked_fill(~inside, torch.finfo(dtype).min)
    return mask[:, None, None, :].expand(-1, 1, inside.shape[1], -1)

"""ESPnet decoder ``whisper``: transformers' Whisper decoder, its output tied to its embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.legacy.nets.scorer_interface import BatchScorerInterface
from torch import Tensor
from torch.nn import functional as F

from espnet_ext.config.decoding import TOKENS_PER_SECOND
from espnet_ext.data.tokenizer import HUB, is_unused
from espnet_ext.encoders.pretrained.transformers_stack import quiet, random_model, read_model
from espnet_ext.errors import UserError, nearest
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.registry import chosen_methods
from espnet_ext.methods.start import apply_to_trained
from espnet_ext.methods.tensors import frame_mask
from espnet_ext.models.whisper_cache import Cache, joined, new_cache, parted, texts_as_queries

START, END = "<|startoftranscript|>", "<|endoftext|>"  # sos and eos
_NO_TIMES = "<|notimestamps|>"
TASKS = ("transcribe", "translate")
DETECT = "detect"  # the language that the model itself hears in each utterance
FRAMES = 50  # of the encoder, a second
MORE_TOKENS = 8  # that an utterance may have in addition
# Keys of transformers' config that decide the decoder.
_KEYS = (
    *("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
    *("max_target_positions", "vocab_size"),
)


class WhisperDecoder(AbsDecoder, BatchScorerInterface):
    """Decoder ``whisper``, for ``token_type: hugging_face`` and an encoder of the same width.

    The prompt that Whisper expects is inserted here, instead of sos: ESPnet's texts, losses and
    searches know nothing of it. Frames after the end of an utterance are masked.

    Attributes:
        prompt: ids of its tokens; set by ``use_tokens``. With ``language: detect`` its second one
            differs by utterance, see ``prompts``.
        end: id of eos.
        absent: (V,), true for ids that no token has; None: all have one.
    """

    absent: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        path: str | None = None,
        architecture: dict | None = None,
        language: str | None = None,
        task: str = "transcribe",
        hrf: dict | None = None,
        residual: dict | None = None,
    ):
        """Load the decoder.

        Args:
            vocab_size: tokens of the list of stage 3.
            encoder_output_size: features of a frame.
            path: folder of a whole Whisper in transformers' format, or ``hub:NAME``.
                None: random weights.
            architecture: keys of transformers' config.json (d_model, decoder_layers, ...): what
                to build if there is no ``path``.
            language: spoken, as ``en`` or ``fr``; ``detect`` lets the model find that of each
                utterance; null for a model that knows English alone.
            task: ``transcribe``, or ``translate`` into English; of multilingual models.
            hrf, residual: sections of methods on the layers, as of ``encoder: stack``.

        Raises:
            UserError: an option that does not fit the model, a model of another width or
                vocabulary, or weights that are missing.
        """
        super().__init__()
        if task not in TASKS:
            raise UserError(f"decoder: whisper: unknown task {nearest(str(task), TASKS)}")
        if path is None and architecture is None:
            raise UserError("decoder: whisper: give the path of a model, or an architecture")
        self.language, self.task = language, task
        self.decoder = _built(architecture or {}) if path is None else self._read(path)
        config = self.decoder.config
        for key, value in (architecture or {}).items():
            if getattr(config, key, value) != value:
                raise UserError(
                    f"{path} has {key} {getattr(config, key)!r}, decoder_conf: architecture says "
                    f"{value!r}"
                )
        if encoder_output_size != config.d_model:
            several = encoder_output_size % config.d_model == 0
            why = "leave out encoder_conf: outputs" if several else "they are not of one model"
            raise UserError(
                f"decoder: whisper has the width {config.d_model}, the encoder "
                f"{encoder_output_size}: {why}"
            )
        if vocab_size != config.vocab_size:
            raise UserError(
                f"decoder: whisper has {config.vocab_size} tokens, the token list {vocab_size}: "
                "it is of another model; choose token_type: hugging_face and run stage 3"
            )
        if methods := chosen_methods({"hrf": hrf, "residual": residual}):
            apply_to_trained(self.decoder, *methods)
        self.prompt: tuple[int, ...] = ()
        self.languages: list[int] = []  # ids of their tokens
        self.end = -1
        self.register_buffer("absent", None, persistent=False)

    def _read(self, path: str) -> Any:
        """Load the decoder from a whole model, and check that it knows the language."""
        import transformers

        name, local = path.removeprefix(HUB), not path.startswith(HUB)
        with quiet():
            whole = read_model(transformers.WhisperModel, name, local)
            multilingual = _is_multilingual(name, local)
        if multilingual is False and (self.language is not None or self.task != "transcribe"):
            raise UserError(
                f"decoder: whisper: {path} transcribes English alone: leave out language and task"
            )
        if multilingual and self.language is None:
            raise UserError(
                f"decoder: whisper: {path} knows many languages: give language, as en or {DETECT}"
            )
        return whole.decoder

    @property
    def architecture(self) -> dict[str, Any]:
        """The option ``architecture`` for a decoder of these sizes."""
        return {key: getattr(self.decoder.config, key) for key in _KEYS}

    def portable_conf(self, conf: Mapping[str, Any]) -> dict[str, Any]:
        """The ``decoder_conf`` that builds this decoder without any file of the model."""
        return {**conf, "path": None, "architecture": self.architecture}

    def member_extracted(self, member: Member) -> None:
        """Record the sizes of a member that ``deploy`` has extracted (``FamilyOwner``)."""
        if member.decoder is not None:
            self.decoder.config.decoder_layers = len(member.decoder)
            self.decoder.config.decoder_ffn_dim = member.decoder_width

    def use_tokens(self, tokens: Sequence[str]) -> tuple[int, int]:
        """Find the prompt in the token list; return the ids of sos and eos.

        Raises:
            UserError: the list is not Whisper's, or has no such language.
        """
        ids = {token: place for place, token in enumerate(tokens)}
        for token in (START, END, _NO_TIMES):
            if token not in ids:
                raise UserError(
                    f"decoder: whisper: no {token} in the token list: choose token_type: "
                    "hugging_face and run stage 3"
                )
        words = [START]
        if self.language is not None:
            known = {t.strip("<|>"): t for t in ids if t.startswith("<|") and len(t) in (6, 7)}
            self.languages = [ids[token] for token in known.values()]
            first = next(iter(known), "") if self.language == DETECT else str(self.language)
            if first not in known:
                raise UserError(
                    f"decoder: whisper: the model lacks the language {nearest(first, known)}"
                )
            words += [known[first], f"<|{self.task}|>"]
        self.prompt = tuple(ids[word] for word in [*words, _NO_TIMES])
        self.end = ids[END]
        absent = torch.tensor([is_unused(token) for token in tokens])
        self.absent = absent if absent.any() else None
        return ids[START], self.end

    def forward(
        self, hs_pad: Tensor, hlens: Tensor, ys_in_pad: Tensor, ys_in_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the scores (B, L, V) of the tokens that follow each of ``ys_in_pad``.

        Args:
            hs_pad: encoder output (B, T, D).
            hlens: frames of each utterance (B,).
            ys_in_pad: token ids (B, L); the first is sos.
            ys_in_lens: tokens of each utterance (B,), returned.
        """
        inside = frame_mask(hlens, hs_pad.shape[1], hs_pad.device)
        tokens = torch.cat([self.prompts(hs_pad, inside), ys_in_pad[:, 1:]], dim=1)
        h = self._run(tokens, hs_pad, inside, None)
        return self.token_scores(h[:, len(self.prompt) - 1 :]), ys_in_lens

    def prompts(self, encoded: Tensor, inside: Tensor | None) -> Tensor:
        """Return the prompts (B, P) of utterances.

        Args:
            encoded: encoder output (B, T, D).
            inside: (B, T), true inside each utterance; None: all frames are.
        """
        found = torch.tensor(self.prompt, device=encoded.device).repeat(len(encoded), 1)
        if self.language == DETECT:
            with torch.no_grad():
                scores = self.token_scores(self._run(found[:, :1], encoded, inside, None)[:, 0])
            languages = torch.tensor(self.languages, device=encoded.device)
            found[:, 1] = languages[scores[:, languages].argmax(-1)]
        return found

    def most_tokens(self, seconds: float, rate: float = TOKENS_PER_SECOND) -> int:
        """The most tokens that a text of speech of this length may have, without eos."""
        room = self.decoder.max_target_positions - len(self.prompt)
        return min(int(rate * seconds) + MORE_TOKENS, room)

    def step(
        self, tokens: Tensor, encoded: Tensor, inside: Tensor | None, past: Any
    ) -> tuple[Tensor, Any]:
        """Score what follows the last of ``tokens``.

        Args:
            tokens: (B, L), those that ``past`` lacks, the prompt included; or (B * n, L), the
                texts of an utterance one after another.
            encoded: encoder output (B, T, D).
            inside: (B, T), true inside each utterance; None: all frames are.
            past: transformers' cache of the earlier tokens; None: there are none.

        Returns:
            Scores, a row for each of ``tokens``, and the cache.
        """
        past = new_cache() if past is None else past
        attentions = [layer.encoder_attn for layer in self.decoder.layers]
        several = len(tokens) > len(encoded)
        with texts_as_queries(attentions if several else (), len(encoded)):
            h = self._run(tokens, encoded, inside, past)
        return self.token_scores(h[:, -1]), past

    def batch_init_state(self, x: Tensor) -> None:
        """The state before the first token; of both searches of ESPnet's."""
        return

    def score(self, y: Tensor, state: Cache | None, x: Tensor) -> tuple[Tensor, Cache]:
        """Log-probabilities (V,) of what follows the tokens ``y`` (L,), and the new state."""
        scores, states = self.batch_score(y.unsqueeze(0), [state], x.unsqueeze(0))
        return scores[0], states[0]

    def batch_score(self, ys: Tensor, states: list[Any], xs: Tensor) -> tuple[Tensor, list[Cache]]:
        """Log-probabilities (n, V) of what follows the tokens ``ys`` (n, L), and new states.

        A text that is as long as its speech allows can only end. ``xs`` (n, T, D) is not padded.
        """
        past = joined(states)
        known = past.get_seq_length()
        tokens = ys[:, 1 - len(self.prompt) + known :] if known else ys[:, 1:]
        if not known:
            tokens = torch.cat([self.prompts(xs, None), tokens], dim=1)
        scores, past = self.step(tokens, xs, None, past)
        found = scores.log_softmax(-1)
        if ys.shape[1] > self.most_tokens(xs.shape[1] / FRAMES):
            found[:, torch.arange(found.shape[1], device=found.device) != self.end] = -1e10
        return found, parted(past, states)

    def _run(self, tokens: Tensor, encoded: Tensor, inside: Tensor | None, past: Any) -> Tensor:
        """Run the layers, which transformers' decoder does without a mask of the frames."""
        decoder = self.decoder
        start = 0 if past is None else past.get_seq_length()
        if start + tokens.shape[1] > decoder.max_target_positions:
            raise UserError(
                f"a text of {tokens.shape[1]} tokens with its prompt is longer than the "
                f"{decoder.max_target_positions} that decoder: whisper has positions for; cut it"
            )
        positions = decoder.embed_positions.weight[start : start + tokens.shape[1]]
        h = decoder.embed_tokens(tokens) + positions
        h = F.dropout(h, p=decoder.dropout, training=self.training)
        mask = None
        if inside is not None and not inside.all():
            mask = inside[:, None, None, :]
        for place, layer in enumerate(decoder.layers):
            # In the cache too the layers are those of a family's selected member.
            layer.self_attn.layer_idx = layer.encoder_attn.layer_idx = place
            # Without a given mask the self-attention is causal.
            h = layer(
                h,
                encoder_hidden_states=encoded,
                encoder_attention_mask=mask,
                past_key_values=past,
                use_cache=past is not None,
            )
        return decoder.layer_norm(h)

    def token_scores(self, h: Tensor) -> Tensor:
        """Scores (..., V); ids without a token have the least one, so no search chooses them."""
        scores = F.linear(h, self.decoder.embed_tokens.weight)
        scores = scores.float()  # for a softmax under autocast
        if self.absent is None:
            return scores
        # With its gradient: label smoothing asks for all ids, and the sum of gradients stays 0.
        least = scores.masked_fill(self.absent, torch.inf).amin(-1, keepdim=True)
        return torch.where(self.absent, least, scores)


def placeholder_tokens(espnet: Mapping[str, Any]) -> list[str]:
    """Tokens that the decoder of a config looks for, where no token list has been made yet."""
    language = (espnet.get("decoder_conf") or {}).get("language")
    language = "en" if language == DETECT else language
    return [START, END, _NO_TIMES, f"<|{language}|>", *(f"<|{task}|>" for task in TASKS)]


def _built(architecture: Mapping[str, Any]) -> Any:
    """A decoder of random weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperDecoder as Decoder

    conf = dict(architecture)
    size = conf.get("vocab_size", WhisperConfig().vocab_size)
    # Of special tokens only the embedding's padding is used, which is none in a trained model.
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        conf[key] = size - 1
    return random_model(WhisperConfig, Decoder, conf)


def _is_multilingual(name: str, local: bool) -> bool | None:
    """Whether the model in a folder knows languages other than English; None: it does not say."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError):
        return None
    return getattr(config, "is_multilingual", None)

"""Keys and values that a Whisper decoder keeps: one cache for a batch, and those of hypotheses."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Keys = list[tuple[Tensor, Tensor]]  # by layer: keys and values (utterances, heads, steps, width)


@dataclass(frozen=True)
class Cache:
    """Keys and values: of the tokens so far, and of the encoder's frames."""

    tokens: Keys
    frames: Keys


def new_cache() -> Any:
    """An empty cache of transformers, of tokens and of frames."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def joined(states: Sequence[Cache | None]) -> Any:
    """Transformers' cache of a batch of hypotheses, which have as many tokens each."""
    cache = new_cache()
    first = states[0]
    if first is None:
        return cache
    for layer in range(len(first.tokens)):
        pairs = [state.tokens[layer] for state in states if state is not None]
        cache.self_attention_cache.update(*map(torch.stack, zip(*pairs, strict=True)), layer)
        pairs = [state.frames[layer] for state in states if state is not None]
        shared = all(keys is pairs[0][0] for keys, _ in pairs)
        sizes = (len(pairs), -1, -1, -1)
        both = [
            one[0].expand(sizes) if shared else torch.stack(one) for one in zip(*pairs, strict=True)
        ]
        cache.cross_attention_cache.update(*both, layer)
        cache.is_updated[layer] = True
    return cache


def parted(cache: Any, states: Sequence[Cache | None]) -> list[Cache]:
    """The state of each hypothesis; hypotheses of one utterance share those of its frames."""
    tokens = [(one.keys, one.values) for one in cache.self_attention_cache.layers]
    frames = [(one.keys, one.values) for one in cache.cross_attention_cache.layers]
    return [
        Cache(
            [(keys[i], values[i]) for keys, values in tokens],
            [(keys[i], values[i]) for keys, values in frames] if state is None else state.frames,
        )
        for i, state in enumerate(states)
    ]


@contextlib.contextmanager
def texts_as_queries(attentions: Iterable[nn.Module], utterances: int) -> Iterator[None]:
    """Let attentions over frames see the texts of an utterance as queries of one row.

    A beam then keeps the keys and values of an utterance's frames once, not once for each text.

    Args:
        attentions: transformers' WhisperAttention over the frames, of each layer. They are given
            (utterances * texts, L, D), with the texts of an utterance one after another.
        utterances: rows of the frames.
    """
    shapes: list[torch.Size] = []

    def fold(_module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        h = args[0] if args else options["hidden_states"]
        shapes.append(h.shape)
        h = h.reshape(utterances, -1, h.shape[-1])
        return ((h, *args[1:]), options) if args else (args, {**options, "hidden_states": h})

    def unfold(_module: nn.Module, _args: tuple, output: tuple) -> tuple:
        h, *rest = output
        return (h.reshape(shapes.pop()), *rest)

    with contextlib.ExitStack() as hooks:
        for attention in attentions:
            hook = attention.register_forward_pre_hook(fold, with_kwargs=True)
            hooks.callback(hook.remove)
            hooks.callback(attention.register_forward_hook(unfold).remove)
        yield

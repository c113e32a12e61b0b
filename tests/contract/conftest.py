"""The cases of the contract suite: every registered method x its option sets x modules.

A new method needs its ``register`` call and an entry in ``trials.py``; nothing here names one.
"""

import importlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espnet_ext.encoders.compressed import compressed_encoder
from espnet_ext.encoders.speechformer import SpeechFormerEncoder
from espnet_ext.encoders.streaming_conformer import StreamingConformerEncoder
from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder
from espnet_ext.methods.registry import METHODS
from tests.contract.trials import TRIALS

FEATURES = 20


class Block(nn.Module):
    """Layers of every site around a batch normalisation, (batch, frames, 20) to the same."""

    def __init__(self):
        super().__init__()
        self.linear_q = nn.Linear(FEATURES, 12)
        self.linear_out = nn.Linear(12, FEATURES)
        self.w_1 = nn.Linear(FEATURES, 24)
        self.w_2 = nn.Linear(24, FEATURES, bias=False)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.pointwise_conv1 = nn.Conv1d(FEATURES, FEATURES, 1)
        self.scale = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear_out(torch.tanh(self.linear_q(x)))
        x = x + self.w_2(torch.relu(self.w_1(x)))
        y = self.pointwise_conv1(self.norm(x.transpose(1, 2))).transpose(1, 2)
        return x + self.scale * torch.tanh(y)


class Stack(nn.Module):
    """Two separate blocks."""

    def __init__(self, input_size: int):
        super().__init__()
        self.encoders = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        for block in self.encoders:
            x = block(x)
        return x, lengths, None


class Tied(Stack):
    """Blocks of which one is used twice, and one has layers tied to those of another."""

    def __init__(self, input_size: int):
        super().__init__(input_size)
        first, second = self.encoders
        for name in ("linear_q", "w_1", "w_2", "pointwise_conv1"):
            one, other = getattr(first, name), getattr(second, name)
            other.weight, other.bias = one.weight, one.bias
        second.scale = first.scale
        self.encoders.append(first)


# ESPnet's encoders as module, class, tiny options. Dropout is on, so that training draws.
_TINY = {"output_size": 16, "attention_heads": 2, "num_blocks": 2, "dropout_rate": 0.1}
_REL = {"rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos"}
_CGMLP = {
    "cgmlp_linear_units": 32,
    "cgmlp_conv_kernel": 7,
    "rel_pos_type": "latest",
    "pos_enc_layer_type": "rel_pos",
    "attention_layer_type": "rel_selfattn",
}
_BLOCK = {"block_size": 8, "hop_size": 4, "look_ahead": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "conformer": {
        "linear_units": 24,
        "cnn_module_kernel": 7,
        "macaron_style": True,
        "selfattention_layer_type": "rel_selfattn",
        **_REL,
        **_TINY,
    },
    "transformer": {"linear_units": 24, **_TINY},
    "e_branchformer": {"linear_units": 24, "use_ffn": True, "macaron_ffn": True, **_CGMLP, **_TINY},
    "branchformer": {**_CGMLP, **_TINY},
    "speechformer": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 24,
        "num_blocks": [2, 2, 2, 2],  # so that two can share in every stage
        "expand": [1, 2, 1],
        "hop_ms": 20,  # two tokens in the last stage: with one its queries would get no gradient
        "dropout_rate": 0.1,
    },
    "streaming_transformer": {
        "linear_units": 24,
        "conv_channels": 4,
        "attention_dropout_rate": 0.1,
        **_TINY,
    },
    "streaming_conformer": {
        "linear_units": 24,
        "conv_channels": 4,
        "cnn_module_kernel": 7,
        "attention_dropout_rate": 0.1,
        **_TINY,
    },
    "contextual_block_transformer": {"linear_units": 24, **_BLOCK, **_TINY},
    "contextual_block_conformer": {
        "linear_units": 24,
        "cnn_module_kernel": 7,
        "macaron_style": True,
        **_BLOCK,
        **_TINY,
    },
}
_RNN = {"num_layers": 2, "hidden_size": 12, "output_size": 16}
RECURRENT = {
    "rnn": {**_RNN, "subsample": [2, 1]},  # ESPnet's dropout here is on in decoding too
    "vgg_rnn": {**_RNN, "rnn_type": "gru", "bidirectional": False, "use_projection": False},
}
ENCODERS |= RECURRENT
# ESPnet's encoders cut the padded batch into blocks: its last blocks are not those of one alone.
# Convolutions of VGG see the padding after an utterance.
SEES_PADDING = {"contextual_block_transformer", "contextual_block_conformer", "vgg_rnn"}
SMALL = {"stack": Stack, "tied": Tied}
OWN = {  # encoders of this package
    "speechformer": SpeechFormerEncoder,
    "streaming_conformer": StreamingConformerEncoder,
    "streaming_transformer": StreamingTransformerEncoder,
}
LAYERS = {"tied": 3}  # of others 2
LACKS = {
    "stack": {"wide_conv", "recurrent"},
    "tied": {"wide_conv", "recurrent"},
    "conformer": {"recurrent"},
    "contextual_block_conformer": {"recurrent"},
    "branchformer": {"ffn", "conv", "recurrent"},
    "transformer": {"conv", "recurrent"},
    "e_branchformer": {"conv", "recurrent"},
    "speechformer": {"conv", "wide_conv", "recurrent"},
    "contextual_block_transformer": {"conv", "recurrent"},
    "streaming_conformer": {"recurrent"},
    "streaming_transformer": {"conv", "recurrent"},
    "rnn": {"ffn", "qkv", "project", "conv", "wide_conv"},
    "vgg_rnn": {"ffn", "qkv", "project", "conv"},
}


def espnet_class(name: str) -> type[nn.Module]:
    """The encoder class, ESPnet's or ours, without importing all of ESPnet's ASR task."""
    if name in OWN:
        return OWN[name]
    parts = name.split("_")
    short = {"e": "E", "rnn": "RNN", "vgg": "VGG"}
    camel = "".join(short.get(p, p.capitalize()) for p in parts) + "Encoder"
    return getattr(importlib.import_module(f"espnet2.asr.encoder.{name}_encoder"), camel)


@dataclass(frozen=True)
class Case:
    """One method with one set of options on one module."""

    method: str
    options: dict = field(hash=False)
    target: str

    def __str__(self) -> str:
        options = "-".join(
            f"{k}={'+'.join(map(str, v)) if isinstance(v, list) else v}"
            for k, v in self.options.items()
        )
        return f"{self.method}-{options or 'defaults'}-{self.target}"

    def plain(self) -> nn.Module:
        """The untouched module, freshly built."""
        if self.target in SMALL:
            return SMALL[self.target](FEATURES)
        return espnet_class(self.target)(FEATURES, **ENCODERS[self.target])

    def build(self) -> nn.Module:
        """The training model, freshly built, in training mode."""
        method = METHODS[self.method]
        if self.target in SMALL:
            return method.apply(self.plain(), method.parse(self.options))
        return compressed_encoder(espnet_class(self.target), method)(FEATURES, **self.conf())

    def conf(self) -> dict[str, Any]:
        """The encoder's options, ``encoder_conf`` of a training config."""
        return {**ENCODERS[self.target], self.method: self.options}

    def model(self) -> nn.Module:
        """The training model with random parameters and statistics, in evaluation mode."""
        return randomise(self.build()).eval()

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of the method."""
        return {n: p for n, p in model.named_parameters() if ".parametrizations." in n}


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give ``model`` parameters and batch statistics that no initialisation would: in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Relative noise keeps the spread that initialisation chose, where it chose any.
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter.add_(noise * (0.1 if spread == 0 else 0.5 * spread.item()))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random features (2, 61, 20) of lengths 61 and 43."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 61, FEATURES, generator=generator, dtype=dtype), torch.tensor([61, 43])


def cases() -> list[Case]:
    """All cases whose module has the sites and the layers that the options ask for.

    A method without option sets has none, and fails ``test_every_method_has_option_sets``.
    """
    found = []
    for method in METHODS.values():
        for options in TRIALS.get(method.name, ()):
            sites = set(getattr(method.parse(options), "sites", ()))
            for target in [*SMALL, *ENCODERS]:
                if target not in SMALL and not method.fits(target, target in RECURRENT):
                    continue
                if LAYERS.get(target, 2) not in options.get("depths", [LAYERS.get(target, 2)]):
                    continue
                if not sites & LACKS.get(target, set()):
                    found.append(Case(method.name, options, target))
    return found


@pytest.fixture(params=cases(), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=[c for c in cases() if c.target in ENCODERS], ids=str)
def encoder_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions above, for test modules (which pytest does not let import this file)."""
    names = {"randomise": randomise, "batch": batch, "cases": cases, "espnet_class": espnet_class}
    functions = {k: staticmethod(f) for k, f in names.items()}
    return type("Tools", (), {"SEES_PADDING": SEES_PADDING, **functions})


@pytest.fixture(scope="session")
def registered() -> None:
    """ESPnet's choices hold ours."""
    from espnet_ext.bridge.registry import install

    install()

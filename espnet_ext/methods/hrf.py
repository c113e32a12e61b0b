"""HRF: layers trained as products of linear factors (arXiv 2411.09339).

Training: W = W_n ... W_1 and b = b_n + W_n b_(n-1) + W_n W_(n-1) b_(n-2) + ...; inference
uses W and b, so the deployed layer is the plain one. With o outputs and i inputs the inner
width is h = r o: W_1 is (h, i), W_n is (o, h), those between are (h, h).

The factors are multiplied once per forward pass (cost o h i) and the frames then pass through the
plain layer. This has the same outputs and gradients as passing every frame through the factors
one after another (cost frames h (i + o)), which ``factorwise_forward`` does for tests and
benchmarks.

Beyond the paper (its open question), for other layers that are linear between non-linearities:

- A convolution with a wide kernel: W_1 is a convolution with that kernel to h channels, the other
  factors are pointwise. Each of g groups has separate factors, h / g = r o / g wide; a depthwise
  convolution thus has r kernels per channel, and sums them.
- A recurrent layer: each of its matrices (input and hidden, all gates together) is a product.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.chains import attach, originals
from espnet_ext.methods.options import Number, Options
from espnet_ext.methods.recurrent import use_computed_weights
from espnet_ext.methods.registry import Method, register
from espnet_ext.methods.sites import check_sites, find_layers, tied_groups
from espnet_ext.methods.tensors import plain_tensors


class HRFOptions(Options):
    """Options of HRF, as written under ``encoder_conf: {hrf: ...}``.

    Attributes:
        sites: which layers are factorized; see ``methods.sites`` (SITES and EXTRA_SITES). The
            paper's main result is ffn.
        ratio: r >= 1, inner width over output width. The paper uses 2, 4, 8.
        factors: n, 2 (the abstract) or 3 (a review of the paper); reference default 2.
    """

    method = "hrf"
    sites: tuple[str, ...] = Field(("ffn",), description="a list of sites")
    ratio: Number = Field(4, ge=1, description="a number of at least 1")
    factors: int = Field(2, ge=2, le=3, description="2 or 3")

    @field_validator("sites", mode="before")
    @classmethod
    def _known_sites(cls, value: Any) -> tuple[str, ...]:
        return check_sites(value, extra=True)


class HRFWeight(nn.Module):
    """Parametrization of a weight as a product of factors.

    A weight (o, i) or (o, i / groups, *kernel) is treated as a matrix (o, i / groups * kernel), or
    as one (o / groups, ...) per group. Factors are matrices, or stacks of them (groups, ...).
    """

    place = 0  # in a chain (``methods.chains``)
    in_float64 = False  # see ``methods.protocols.Product``

    def __init__(self, ratio: float, factors: int, groups: int = 1):
        super().__init__()
        self.ratio = ratio
        self.factors = factors
        self.groups = groups
        self.shape: tuple[int, ...] = ()

    def forward(self, *factors: Tensor) -> Tensor:
        """Return W_n ... W_1, given W_1, ..., W_n."""
        kind = factors[0].dtype
        if self.in_float64:
            factors = tuple(factor.double() for factor in factors)
        first, *inner, last = factors
        # An inner factor is square: multiply it with the smaller side first.
        if inner and first.shape[-1] <= last.shape[-2]:
            first = inner[0] @ first
        elif inner:
            last = last @ inner[0]
        found = (last @ first).reshape(self.shape)
        return found.to(kind) if self.in_float64 else found

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return factors whose product is distributed like ``weight``, not equal to it.

        Each factor is Gaussian with the same deviation s; an entry of the product of n factors
        with inner width h has variance s^(2n) h^(n-1), which is set to the mean square of
        ``weight``. (Default initialisation of each factor would shrink the product.)
        """
        self.shape = tuple(weight.shape)
        outputs, inputs = weight.shape[0] // self.groups, weight[0].numel()
        inner = max(1, round(self.ratio * outputs))
        variance = weight.detach().double().square().mean().item()
        deviation = (variance / inner ** (self.factors - 1)) ** (1 / (2 * self.factors))
        widths = [inputs, *[inner] * (self.factors - 1), outputs]
        stack = (self.groups,) if self.groups > 1 else ()
        return tuple(
            weight.new_empty(*stack, after, before).normal_(std=deviation)
            for before, after in zip(widths, widths[1:], strict=False)
        )

    def exact(self, weight: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return factors whose product is ``weight``: W_1 = [W; R], then [I 0] (I between).

        R, which the last factor leaves out at first, are rows of ``factors``, which are as long.
        """
        outputs = factors[-1].shape[-2]
        first, *inner, last = (factor.detach().clone() for factor in factors)
        first[..., :outputs, :] = weight.reshape(*first.shape[:-2], outputs, -1)
        for factor in (*inner, last):
            factor.copy_(torch.eye(*factor.shape[-2:], dtype=factor.dtype))
        return (first, *inner, last)


class HRFBias(nn.Module):
    """Parametrization of a bias folded from the biases b_1, ..., b_n of the factors."""

    place = 0
    in_float64 = False

    def __init__(self, weights: parametrize.ParametrizationList):
        super().__init__()
        # In a list, so that the factors are not registered a second time here.
        self._weights = [weights]

    def forward(self, *biases: Tensor) -> Tensor:
        """Return b_n + W_n b_(n-1) + ... (shape (o,)): Horner's rule from the first factor."""
        factors, kind = hrf_factors(self._weights[0]), biases[0].dtype
        if self.in_float64:
            factors, biases = [f.double() for f in factors], tuple(b.double() for b in biases)
        folded = biases[0]
        for factor, bias in zip(factors[1:], biases[1:], strict=True):
            if factor.dim() == 3:  # one matrix per group
                folded = folded.view(len(factor), -1, 1)
            folded = (factor @ folded).flatten() + bias
        return folded.to(kind) if self.in_float64 else folded

    def right_inverse(self, bias: Tensor) -> tuple[Tensor, ...]:
        """Return zero inner biases and ``bias`` itself for the last factor."""
        widths = [factor.shape[:-1].numel() for factor in hrf_factors(self._weights[0])]
        return (*(bias.new_zeros(width) for width in widths[:-1]), bias.detach().clone())


def hrf_factors(weights: parametrize.ParametrizationList) -> list[Tensor]:
    """Return W_1, ..., W_n of a parametrized weight."""
    return originals(weights)


def factorize(layer: nn.Module, options: HRFOptions) -> None:
    """Parametrize a linear, convolutional or recurrent layer with HRF, in place."""
    if parametrize.is_parametrized(layer):
        raise UserError("this layer already has a method; hrf has to be the first")
    groups = getattr(layer, "groups", 1)
    for name in [name for name in layer._parameters if name.startswith("weight")]:
        # Initialisation keeps the variance of the weight, not the weight.
        attach(layer, name, HRFWeight(options.ratio, options.factors, groups))
        bias_name = name.replace("weight", "bias", 1)
        if layer._parameters.get(bias_name) is not None:
            attach(layer, bias_name, HRFBias(layer.parametrizations[name]))
    if isinstance(layer, nn.RNNBase):
        use_computed_weights(layer)


def apply_hrf(module: nn.Module, options: HRFOptions) -> nn.Module:
    """Factorize every layer of ``module`` at ``options.sites``, in place; return ``module``.

    Tied layers share their factors, so they stay tied.
    """
    for group in tied_groups(module, find_layers(module, options.sites)):
        first, *others = (layer.module for layer in group)
        factorize(first, options)
        for other in others:
            factorize(other, options)
            other.parametrizations.update(first.parametrizations.items())
    return module


def start(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[str]:
    """Start at trained layers, exactly; see ``methods.start``."""
    for place, tensor, chain in list(plain_tensors(module, state, prefix)):
        if isinstance(chain[0], HRFWeight):
            parts = chain[0].exact(state.pop(f"{place}{tensor}"), hrf_factors(chain))
        elif isinstance(chain[0], HRFBias):
            parts = chain[0].right_inverse(state.pop(f"{place}{tensor}"))
        else:
            continue
        for number, part in enumerate(parts):
            state[f"{place}parametrizations.{tensor}.original{number}"] = part
    return []


def factorwise_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Pass frames (..., inputs) through the factors of a linear layer one after another.

    The result (..., outputs) equals ``layer(x)`` up to rounding.
    """
    chains = layer.parametrizations
    factors = hrf_factors(chains["weight"])
    biases: list[Any] = [None] * len(factors)
    if "bias" in chains:
        biases = hrf_factors(chains["bias"])
    for factor, bias in zip(factors, biases, strict=True):
        x = F.linear(x, factor, bias)
    return x


register(
    Method(
        *("hrf", HRFOptions, apply_hrf, factorize, "arXiv 2411.09339"),
        recurrent=True,
        start=start,
        place=0,
    )
)

"""Input layers ``dw_conv2d`` and ``dw_conv2d8``: subsampling by depthwise separable convolutions.

ESPnet's second and third subsampling convolutions map d to d channels in 3 x 3. In a Conformer of
12 x 256 they are a quarter of all operations (more in a smaller one), and no family of nested
depths can save that. A depthwise convolution of each channel followed by a pointwise one
(MobileNets, arXiv 1704.04861; for speech, arXiv 2305.05084) subsamples with about a ninth of the
operations.
"""

import inspect
from typing import Any

from torch import nn

# The input layers defined here, and ESPnet's, whose convolutions have stride 2 and 3 x 3 kernels.
DEPTHWISE_LAYERS = {"dw_conv2d": "conv2d", "dw_conv2d8": "conv2d8"}


def with_depthwise_subsampling(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of an ESPnet encoder with ``input_layer: dw_conv2d`` and ``dw_conv2d8``.

    They are conv2d (4 times fewer frames) and conv2d8 (8 times), in which every convolution but
    the first, which has one input channel, is depthwise separable. With any other input layer the
    encoder equals ``base``.
    """

    class Encoder(base):  # type: ignore[misc,valid-type]
        def __init__(self, input_size: int, *arguments: Any, **conf: Any):
            chosen = conf.get("input_layer")
            full = DEPTHWISE_LAYERS.get(chosen) if isinstance(chosen, str) else None
            if full is not None:
                conf["input_layer"] = full
            super().__init__(input_size, *arguments, **conf)
            if full is not None:
                make_separable(self.embed.conv)

    Encoder.__name__ = Encoder.__qualname__ = base.__name__
    Encoder.__signature__ = inspect.signature(base)  # type: ignore[attr-defined]
    return Encoder


def make_separable(convolutions: nn.Sequential) -> None:
    """Replace each convolution of several inputs by a depthwise and a pointwise one, in place."""
    for name, layer in list(convolutions.named_children()):
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            inputs, outputs = layer.in_channels, layer.out_channels
            depthwise = nn.Conv2d(inputs, inputs, 3, layer.stride, groups=inputs)
            setattr(convolutions, name, nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1)))

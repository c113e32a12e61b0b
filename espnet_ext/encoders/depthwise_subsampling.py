"""A front end of depthwise separable convolutions, beside those that ESPnet's encoders have.

ESPnet's second and third subsampling convolution are full ones, d to d channels in 3 x 3: in a
Conformer of 12 x 256 they are a quarter of all operations (more in a smaller one), and no family of
nested depths can save that. A depthwise convolution of each channel followed by a pointwise one
(MobileNets, arXiv 1704.04861; for speech, arXiv 2305.05084) does the same subsampling with about a
ninth of the operations.
"""

import inspect
from typing import Any

from torch import nn

_PREFIX = "dw_"
# ESPnet's input_layer, whose convolutions stride by 2 in 3 x 3, by ours.
SEPARABLE = {f"{_PREFIX}{name}": name for name in ("conv2d", "conv2d8")}


def with_separable(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of an ESPnet encoder that knows ``input_layer: dw_conv2d`` and dw_conv2d8.

    They are conv2d (4 times fewer frames) and conv2d8 (8 times) with every convolution but the
    first, which has one channel to see, in two parts. With any other input layer it is ``base``.
    """

    class Separable(base):  # type: ignore[misc,valid-type]
        def __init__(self, input_size: int, *arguments: Any, **conf: Any):
            chosen = conf.get("input_layer")
            full = SEPARABLE.get(chosen) if isinstance(chosen, str) else None
            if full is not None:
                conf["input_layer"] = full
            super().__init__(input_size, *arguments, **conf)
            if full is not None:
                separate(self.embed.conv)

    Separable.__name__ = Separable.__qualname__ = base.__name__
    Separable.__signature__ = inspect.signature(base)  # type: ignore[attr-defined]
    return Separable


def separate(convolutions: nn.Sequential) -> None:
    """Put a depthwise and a pointwise convolution in place of each with several inputs."""
    for name, layer in list(convolutions.named_children()):
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            inputs, outputs = layer.in_channels, layer.out_channels
            depthwise = nn.Conv2d(inputs, inputs, 3, layer.stride, groups=inputs)
            setattr(convolutions, name, nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1)))

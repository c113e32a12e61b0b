"""How large the inputs of a family's weights are: measured before a training (``per: input``)."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import to_device
from torch import Tensor, nn

from espnet_ext.bridge.training.collective import total
from espnet_ext.methods.chains import chain_of, part_of
from espnet_ext.methods.nested_layers import NestedWeight

type Batches = Iterable[tuple[Any, dict[str, Any]]]

_BATCHES = 12  # that are looked at: some hundred utterances
_MOST = 4.0  # times as large, or as small, as the others: sizes beyond that are rare large numbers


@torch.no_grad()
def measure_inputs(model: nn.Module, batches: Callable[[], Batches]) -> None:
    """Give weights that are rounded per input the sizes of their inputs, in place.

    A size is the root mean square of an input, at 32 bits and without dropout, over the geometric
    mean of those of its weight, from 1/4 to 4. Models without such weights stay as they are.

    Args:
        model: of a training, on its device.
        batches: returns names of utterances and arguments of the model's forward pass; not called
            where nothing is measured.
    """
    layers = [
        (layer, found[1])
        for layer in model.modules()
        if (found := part_of(chain_of(layer, "weight") or (), NestedWeight))
        and found[1].counts is not None
    ]
    if not layers:
        return
    seen: dict[NestedWeight, list[Any]] = {}
    hooks = [
        layer.register_forward_pre_hook(_adding(part, seen))
        for layer, part in layers
        if not isinstance(layer, nn.Embedding)
    ]
    device = next(model.parameters()).device
    before = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            for _, batch in itertools.islice(batches(), _BATCHES):
                model(**to_device(batch, device))
    finally:
        model.train(before)
        for hook in hooks:
            hook.remove()
    for part, (sums, count) in seen.items():
        size = torch.tensor([total(s) for s in sums.tolist()]).div(total(count)).sqrt()
        size = size.clamp_min(torch.finfo(size.dtype).tiny)
        part.inputs.copy_((size / size.log().mean().exp()).clamp(1 / _MOST, _MOST))


def _adding(part: NestedWeight, seen: dict[NestedWeight, list[Any]]) -> Callable[..., None]:
    """A hook that adds the squares of a layer's inputs to those ``seen`` of its weight."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if part.bits != 32:
            return
        x = inputs[0].detach().float().square()
        if not isinstance(layer, nn.Linear):
            x = x.movedim(1, -1)  # channels
        x = x.reshape(-1, len(part.inputs))  # of a convolution in groups: those of all groups
        found = seen.setdefault(part, [0.0, 0])
        found[0], found[1] = found[0] + x.sum(0), found[1] + len(x)

    return add

"""Frame features from layers of a pretrained model, for the arks of stage 2.

The model is a frozen ``Stack``, loaded as for ``encoder: stack``. Layers after the last chosen
one are not run.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch

from espnet_ext.data.ssl_model import SSLModel
from espnet_ext.encoders.pretrained.load import load_stack


def layer_extractor(described: SSLModel) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of a wave (samples,) in [-1, 1] that returns (frames, width) float32.

    Raises:
        UserError: the weights cannot be read, or some are missing; the function raises one for a
            wave that is too short.
    """
    times = tuple((str(p.resolve()), p.stat().st_mtime_ns) for p in described.files)
    return _extractor(described, times)


@functools.lru_cache(maxsize=1)  # loaded once per process while the files stay the same
def _extractor(
    described: SSLModel, files: tuple[tuple[str, int], ...]
) -> Callable[[np.ndarray], np.ndarray]:
    stack = load_stack(described.folder)

    @torch.inference_mode()
    def extract(wave: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(wave).float().unsqueeze(0)
        x, lengths = stack.front(samples, torch.tensor([len(wave)]))
        h = stack.enter(x, lengths)
        # Without the norm after a stack of pre-norm layers, which is part of no layer.
        outputs = [h, *stack.run(h, lengths, 0, max(described.layers), finished=False)]
        chosen = torch.cat([outputs[layer][0] for layer in described.layers], dim=-1)
        return chosen.numpy().astype(np.float32)

    return extract

"""A pretrained encoder teaches a small one: its outputs, frame by frame."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from espnet_ext.methods.tensors import frame_mask

# Frames of the encoder, and share of an utterance, by which lengths may differ from the teacher's.
_OFF, _SHARE = 2, 0.05


class Teacher(nn.Module):
    """The head that maps the encoder's frames to those of a frozen teacher.

    The teacher is no part of the model: it is neither trained nor stored, and it hears the same
    samples, changed in speed or not.

    Raises:
        UserError: no such model.
    """

    def __init__(self, path: str, width: int):
        """``path``: of the teacher, see ``load.load_stack``; ``width``: of the encoder's frames."""
        super().__init__()
        stack = load_stack(path).eval().requires_grad_(False)
        self._stack = [stack]  # in a list, so that it is not registered
        self.head = nn.Linear(width, stack.width)

    def loss(self, encoded: Tensor, frames: Tensor, speech: Tensor, samples: Tensor) -> Tensor:
        """Mean absolute error plus one minus the cosine, over the frames of the utterances.

        As in DistilHuBERT (arXiv 2110.01900, section 2.2). Where the teacher has several frames
        for one of the encoder, their mean is the target.

        Args:
            encoded: encoder output (B, T, D).
            frames: of each utterance (B,).
            speech: samples (B, N).
            samples: of each utterance (B,).

        Raises:
            UserError: the teacher's frame rate is no multiple of the encoder's.
        """
        (stack,) = self._stack
        stack.to(speech.device)
        with torch.no_grad():
            target, lengths = stack(speech, samples)
        target = _averaged(target, lengths, frames)[:, : encoded.shape[1]]
        found = self.head(encoded[:, : target.shape[1]]).float()
        inside = frame_mask(frames.clamp(max=target.shape[1]), target.shape[1], target.device)
        found, target = found[inside], target[inside].float()
        return F.l1_loss(found, target) + 1 - F.cosine_similarity(found, target, dim=-1).mean()


def _averaged(target: Tensor, lengths: Tensor, frames: Tensor) -> Tensor:
    """The teacher's frames (B, T, d) at the rate of the encoder."""
    ratio = max(1, round(float(lengths.sum()) / max(float(frames.sum()), 1.0)))
    if ((lengths - ratio * frames).abs() > _OFF * ratio + _SHARE * lengths).any():
        raise UserError(
            f"recipe: teacher: it has {lengths.tolist()[0]} frames where the encoder has "
            f"{frames.tolist()[0]}: its frame rate must be a multiple of the encoder's"
        )
    if ratio == 1:
        return target
    inside = frame_mask(lengths, target.shape[1], target.device).unsqueeze(-1)
    sums = F.avg_pool1d((target * inside).transpose(1, 2), ratio, ceil_mode=True)
    shares = F.avg_pool1d(inside.to(target.dtype).transpose(1, 2), ratio, ceil_mode=True)
    return (sums / shares.clamp(min=1e-6)).transpose(1, 2)

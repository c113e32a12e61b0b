"""The loss of a nested family: the largest network teaches its sub-networks (arXiv 2406.10160).

    L = L_max + sum over sub-networks i of  w_i L_i + k_c KL_c,i + k_d KL_d,i

L is ESPnet's own loss of a recogniser, computed by ESPnet's own code on each sub-network's encoder
output. KL_c is taken on the CTC posteriors of every frame, KL_d on the decoder's of every token,
from those of the largest network, whose gradient is stopped. Both are in the unit of the loss that
they stand beside: summed over an utterance, averaged over the batch.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.encoders.family_outputs import encoder_outputs
from espnet_ext.errors import UserError
from espnet_ext.methods.nested import NestedStack, nested_stack
from espnet_ext.methods.nested_options import Member, NestedOptions, members_of_step

Outputs = dict[str, tuple[Tensor, Tensor]]  # by head: logits (B, T, V) and how many count (B,)


def refuse_unusable(model: Any) -> None:
    """Raise UserError if the options of the family in ``model`` do not fit the model."""
    stack = nested_stack(model.encoder)
    if stack is None or len(stack.family) == 1:
        return
    options = stack.options
    if options.kl_ctc and model.ctc is None:
        raise UserError("nested: kl_ctc needs CTC: choose kl_ctc: 0, or a ctc_weight above 0")
    if options.kl_decoder and model.use_transducer_decoder:
        raise UserError("nested: kl_decoder is for attention decoders: choose kl_decoder: 0")


def family_loss(
    model: Any,
    stack: NestedStack,
    one_loss: Callable[..., tuple[Tensor, dict, Tensor]],
    batch: dict[str, Any],
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """The loss of a batch, over the sub-networks of this training step; over all in evaluation.

    Args:
        model: ESPnet's ASR model; what ``one_loss`` encodes is set as its ``encoded``.
        stack: of its encoder.
        one_loss: ESPnet's forward pass of one network.
        batch: its arguments.

    Returns:
        Loss, statistics and weight, as ESPnet's trainer takes them. Statistics of training are
        named by role, since those drawn may differ between processes of one training; in
        evaluation ``cer_ctc_mean`` and the like are means over all members, and each is there
        under its own name.
    """
    chosen = _chosen(model, stack)
    encoded = _encode(model, stack, chosen, batch)
    losses, divergences, stats = [], [], []
    teacher: Outputs = {}
    for member in chosen:
        with _outputs(model) as outputs:
            model.encoded = encoded[member]
            try:
                # ESPnet changes texts and their lengths in place.
                texts = {key: batch[key].clone() for key in ("text", "text_lengths")}
                loss, found, weight = one_loss(**{**batch, **texts})
            finally:
                model.encoded = None
        losses.append(loss)
        stats.append(found)
        if member is chosen[0]:
            teacher = {k: (logits.detach(), n) for k, (logits, n) in outputs.items()}
        else:
            divergences.append(_divergences(model, teacher, outputs))
    total = _total(stack.options, chosen, losses, divergences)
    kept = {**stats[0], **_by_role(losses, divergences), "loss": total.detach()}
    if not model.training:
        kept |= _by_name(chosen, stats)
    total, kept, _ = force_gatherable((total, kept, 1), total.device)
    return total, kept, weight


def divergence(teacher: Tensor, student: Tensor, counts: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, T, V), summed over the first ``counts`` steps of each
    utterance (B,) and averaged over the batch."""
    own, other = (logits.float().log_softmax(-1) for logits in (student, teacher))
    each = F.kl_div(own, other, reduction="none", log_target=True).sum(-1)
    inside = torch.arange(each.shape[1], device=each.device) < counts.to(each.device).unsqueeze(1)
    return torch.where(inside, each, each.new_zeros(())).sum() / len(each)


def _chosen(model: nn.Module, stack: NestedStack) -> Sequence[Member]:
    """The members of this step."""
    if not model.training:
        return stack.family
    steps: Any = getattr(stack, "steps", None)
    if steps is None:
        return stack.family
    chosen = members_of_step(stack.options, stack.family, int(steps))
    steps += 1  # saved with the model: a training goes on where it was stopped
    return chosen


def _encode(
    model: Any, stack: NestedStack, chosen: Sequence[Member], batch: dict[str, Any]
) -> dict[Member, tuple[Tensor, Tensor]]:
    """Encoder outputs and lengths of the members, what they have in common computed once."""
    with stack.running(chosen) as exits:
        first, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    found = {chosen[0]: (first, lengths)}
    for member, output in encoder_outputs(model.encoder, exits, chosen[1:]).items():
        found[member] = (output, lengths)
        if model.postencoder is not None:
            found[member] = model.postencoder(output, lengths)
    return found


@contextlib.contextmanager
def _outputs(model: Any) -> Iterator[Outputs]:
    """Collect the logits that the heads compute inside, so that nothing is computed twice."""
    found: Outputs = {}

    def of_ctc(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        found.setdefault("ctc", (output, model.encoded[1]))

    def of_decoder(layer: nn.Module, inputs: Any, output: Any) -> None:
        found.setdefault("decoder", (output[0], inputs[3]))  # the lengths that it returns are none

    hooks = []
    if model.ctc is not None:
        hooks.append(model.ctc.ctc_lo.register_forward_hook(of_ctc))
    if model.decoder is not None and not model.use_transducer_decoder:
        hooks.append(model.decoder.register_forward_hook(of_decoder))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _divergences(model: Any, teacher: Outputs, outputs: Outputs) -> dict[str, Tensor]:
    """KL of each head from the teacher's, in the unit of the head's loss."""
    found = {}
    for head, (logits, counts) in outputs.items():
        each = divergence(teacher[head][0], logits, counts)
        if head == "decoder" and model.criterion_att.normalize_length:
            each = each * len(logits) / counts.sum()  # a token's, as the loss then is
        found[head] = each
    return found


def _total(
    options: NestedOptions,
    chosen: Sequence[Member],
    losses: Sequence[Tensor],
    divergences: Sequence[dict[str, Tensor]],
) -> Tensor:
    """The loss of the step."""
    weights = {"ctc": options.kl_ctc, "decoder": options.kl_decoder}
    added = torch.zeros_like(losses[0])
    for member, loss, found in zip(chosen[1:], losses[1:], divergences, strict=True):
        added = added + options.weights.get(member.name, options.sub_weight) * loss
        for head, each in found.items():
            if weights[head]:
                added = added + weights[head] * each
    return losses[0] + (added / max(1, len(divergences)) if options.mean else added)


def _by_role(
    losses: Sequence[Tensor], divergences: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Losses of the largest, the smallest and all other members, and mean divergences."""
    found = {"loss_largest": losses[0].detach()}
    if divergences:
        found["loss_smallest"] = losses[-1].detach()
        found["loss_others"] = torch.stack([loss.detach() for loss in losses[1:]]).mean(0)
        for head in divergences[0]:
            found[f"kl_{head}"] = torch.stack([d[head].detach() for d in divergences]).mean()
    return found


def _by_name(chosen: Sequence[Member], stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every statistic of every member, and its mean over them."""
    found: dict[str, Any] = {}
    for key, value in stats[0].items():
        if value is None:
            continue
        found |= {f"{key}_{m.name}": one[key] for m, one in zip(chosen, stats, strict=True)}
        found[f"{key}_mean"] = torch.stack([torch.as_tensor(one[key]) for one in stats]).mean(0)
    return found

"""The loss of a nested family: the largest network teaches its sub-networks (arXiv 2406.10160).

    L = L_max + sum over sub-networks i of  w_i L_i + k_c KL_c,i + k_d KL_d,i

L is ESPnet's loss of a recogniser, which ESPnet's code computes from each sub-network's encoder
output. KL_c compares the CTC posteriors of every frame, KL_d the decoder's of every token, with
those of the largest network, whose gradient is stopped. A KL has the unit of the loss of its head:
summed over an utterance, averaged over the batch.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.encoders.family_outputs import encoder_outputs
from espnet_ext.errors import UserError
from espnet_ext.methods.codes import MOST_IN_GRID
from espnet_ext.methods.nested import NestedStack, nested_stack
from espnet_ext.methods.nested_options import Member, NestedOptions, members_of_step
from espnet_ext.methods.tensors import frame_mask

Encoded = tuple[Tensor, Tensor]  # encoder output (B, T, d) and lengths (B,)
Outputs = dict[str, tuple[Tensor, Tensor]]  # by head: logits (B, T, V), steps that count (B,)


def check_options(model: Any) -> None:
    """Raise UserError if the options of the family in ``model`` do not fit the model."""
    stack = nested_stack(model.encoder)
    if stack is None or len(stack.family) == 1:
        return
    options = stack.options
    if options.kl_ctc and model.ctc is None:
        raise UserError("nested: kl_ctc needs CTC: choose kl_ctc: 0, or a ctc_weight above 0")
    if options.has_decoders and options.over == "encoder":
        raise UserError("nested: decoder_depths and decoder_widths need over: model")
    if options.scale == "deviation" and len({*options.bits} - {32}) > 1:
        raise UserError("nested: scale: deviation is for one precision below 32 bits")
    if isinstance(options.step, Mapping) and options.over == "encoder":
        raise UserError("nested: step by parts of the model needs over: model")
    if options.table is not None and options.over == "encoder":
        raise UserError("nested: table needs over: model")
    if options.letters is not None and options.table is None:
        raise UserError("nested: letters needs a table, as in table: 4")
    if options.rare is not None and options.table is None:
        raise UserError("nested: rare needs a table, as in table: 2")
    for name in ("common", "frequent"):
        if getattr(options, name) and options.rare is None:
            raise UserError(f"nested: {name} needs rare, as in rare: 6")
    if options.table_step is not None:
        if options.rare is not None or not options.table_sizes:
            raise UserError("nested: table_step needs a table without rare, as in table: 2")
        if max(options.table_sizes.values()) > MOST_IN_GRID:
            raise UserError(f"nested: table_step needs a table of 1 to {MOST_IN_GRID}")
    if options.rare is not None and not (options.common or options.frequent):
        raise UserError("nested: rare needs frequent or common, which say what is not rare")
    if options.kl_decoder and model.use_transducer_decoder:
        raise UserError("nested: kl_decoder is for attention decoders: choose kl_decoder: 0")


def family_loss(
    model: Any, stack: NestedStack, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Return the loss of a batch over the members of this training step; in evaluation over all.

    Args:
        model: ESPnet's ASR model with ``loss_of`` (``models.asr``).
        stack: of its encoder.
        batch: arguments of its forward pass.

    Returns:
        Loss, statistics and weight, as ESPnet's trainer expects them. Statistics of training are
        named by role, since the processes of one training may draw different members; in
        evaluation each member has its statistics under its name, and ``cer_ctc_mean`` and the
        like are means over all members.
    """
    members = _members(model, stack)
    losses, divergences, stats = [], [], []
    teacher: Outputs = {}
    for member, encoded in _encoded(model, stack, members, batch):
        # ESPnet changes texts and their lengths in place.
        texts = {key: batch[key].clone() for key in ("text", "text_lengths")}
        with _head_outputs(model, encoded[1]) as outputs:
            loss, found, weight = model.loss_of(encoded, {**batch, **texts})
        losses.append(loss)
        stats.append(found)
        if member is members[0]:
            teacher = {head: (logits.detach(), n) for head, (logits, n) in outputs.items()}
        else:
            divergences.append(_divergences(model, teacher, outputs))
    total = _total(stack.options, members, losses, divergences)
    kept = {**stats[0], **_by_role(losses, divergences), "loss": total.detach()}
    if not model.training:
        kept |= _by_name(members, stats)
    total, kept, _ = force_gatherable((total, kept, 1), total.device)
    return total, kept, weight


def divergence(teacher: Tensor, student: Tensor, counts: Tensor) -> Tensor:
    """Return KL(teacher || student) of logits (B, T, V).

    It is summed over the first ``counts`` steps of each utterance (B,), averaged over the batch.
    """
    learner, target = (logits.float().log_softmax(-1) for logits in (student, teacher))
    each = F.kl_div(learner, target, reduction="none", log_target=True).sum(-1)
    inside = frame_mask(counts, each.shape[1], each.device)
    return torch.where(inside, each, each.new_zeros(())).sum() / len(each)


def _members(model: Any, stack: NestedStack) -> Sequence[Member]:
    """Return the members of this step."""
    steps: Any = getattr(stack, "steps", None)
    members: Sequence[Member] = stack.family
    if steps is not None and model.training:
        members = members_of_step(stack.options, stack.family, int(steps))
        steps += 1  # saved with the model, so that a resumed training continues the draws
    if stack.options.over == "encoder":
        return members
    # The members of one precision follow one another: each precision encodes anew.
    order = list(dict.fromkeys(member.bits for member in members))
    return sorted(members, key=lambda member: order.index(member.bits))


def _encoded(
    model: Any, stack: NestedStack, members: Sequence[Member], batch: dict[str, Any]
) -> Iterator[tuple[Member, Encoded]]:
    """Yield members and their encoder outputs; meanwhile what follows has the member's precision.

    Where precisions concern the encoder's blocks only, all members are encoded together.
    """
    if stack.options.over == "encoder":
        yield from _encode(model, stack, members, batch).items()
        return
    for _, some in itertools.groupby(members, key=lambda member: member.bits):
        group = list(some)
        with stack.as_member(group[0].name), stack.rounding_once():
            for member, encoded in _encode(model, stack, group, batch).items():
                with stack.as_member(member.name):
                    yield member, encoded


def _encode(
    model: Any, stack: NestedStack, members: Sequence[Member], batch: dict[str, Any]
) -> dict[Member, Encoded]:
    """Return the encoder outputs of the members; common first layers run once."""
    with stack.running(members) as exits:
        first, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    found = {members[0]: (first, lengths)}
    for member, output in encoder_outputs(model.encoder, exits, members[1:]).items():
        found[member] = (output, lengths)
        if model.postencoder is not None:
            found[member] = model.postencoder(output, lengths)
    return {member: found[member] for member in members}


@contextlib.contextmanager
def _head_outputs(model: Any, frames: Tensor) -> Iterator[Outputs]:
    """Collect the logits that the heads compute inside the block, so as not to compute them twice.

    ``frames`` (B,) are the lengths of the encoder output.
    """
    found: Outputs = {}

    def of_ctc(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        found.setdefault("ctc", (output, frames))

    def of_decoder(layer: nn.Module, inputs: Any, output: Any) -> None:
        found.setdefault("decoder", (output[0], inputs[3]))  # output[1] are not the token counts

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
    """Return the KL of each head from the teacher's, in the unit of the head's loss."""
    found = {}
    for head, (logits, counts) in outputs.items():
        each = divergence(teacher[head][0], logits, counts)
        if head == "decoder" and model.criterion_att.normalize_length:
            each = each * len(logits) / counts.sum()  # per token, as this loss is
        found[head] = each
    return found


def _total(
    options: NestedOptions,
    members: Sequence[Member],
    losses: Sequence[Tensor],
    divergences: Sequence[dict[str, Tensor]],
) -> Tensor:
    """Return the loss of the step."""
    weights = {"ctc": options.kl_ctc, "decoder": options.kl_decoder}
    added = torch.zeros_like(losses[0])
    for member, loss, found in zip(members[1:], losses[1:], divergences, strict=True):
        added = added + options.weights.get(member.name, options.sub_weight) * loss
        for head, each in found.items():
            if weights[head]:
                added = added + weights[head] * each
    return losses[0] + (added / max(1, len(divergences)) if options.mean else added)


def _by_role(
    losses: Sequence[Tensor], divergences: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return losses of the largest, the smallest and all other members, and mean divergences."""
    found = {"loss_largest": losses[0].detach()}
    if divergences:
        found["loss_smallest"] = losses[-1].detach()
        found["loss_others"] = torch.stack([loss.detach() for loss in losses[1:]]).mean(0)
        for head in divergences[0]:
            found[f"kl_{head}"] = torch.stack([d[head].detach() for d in divergences]).mean()
    return found


def _by_name(members: Sequence[Member], stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return every statistic of every member, and its mean over them."""
    found: dict[str, Any] = {}
    for key, value in stats[0].items():
        if value is None:
            continue
        found |= {f"{key}_{m.name}": one[key] for m, one in zip(members, stats, strict=True)}
        found[f"{key}_mean"] = torch.stack([torch.as_tensor(one[key]) for one in stats]).mean(0)
    return found

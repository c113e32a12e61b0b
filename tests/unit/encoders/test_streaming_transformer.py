"""The chunk-streaming encoders: both forwards against a dense masked one and each other."""

import pytest
import torch
from torch import Tensor, nn

from espnet_ext.errors import UserError

BINS = 20
SIZES = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 3}
SHAPES = {
    "paper": {},
    "no history": {"history_ms": 0},
    "no look-ahead": {"lookahead_ms": 0},
    "long look-ahead": {"chunk_ms": 80, "lookahead_ms": 200, "history_ms": 360},
    "long chunk": {"chunk_ms": 320, "lookahead_ms": 40, "history_ms": 80},
    "one frame": {"chunk_ms": 40, "lookahead_ms": 0, "history_ms": 40},
}


KINDS = ("transformer", "conformer")
KERNEL = 7  # frames that a convolution of the Conformer sees: more than a chunk of the shapes


def encoder(kind: str = "transformer", seed: int = 1, **shape) -> nn.Module:
    """A tiny encoder with weights that no initialisation gives, in evaluation mode."""
    from espnet_ext.encoders.streaming_conformer import StreamingConformerEncoder
    from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder

    torch.manual_seed(seed)
    options = {"conv_channels": 6, **SIZES, **shape}
    if kind == "conformer":
        # The paper's history, which is another default here.
        options = {"cnn_module_kernel": KERNEL, "history_ms": 288, **options}
        model = StreamingConformerEncoder(BINS, **options).eval()
    else:
        model = StreamingTransformerEncoder(BINS, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model


def dense(model: nn.Module, x: Tensor) -> Tensor:
    """The definition: one utterance (T, bins), look-aheads copied to the end, one mask.

    Plain softmax attention over all frames, no blocks, no caches: shares with the encoder only
    its weights.
    """
    chunk, history, ahead = (
        model.geometry.chunk,
        model.geometry.history,
        model.geometry.lookahead,
    )
    y = nn.functional.pad(x[None, None], (1, 1, 1, 1))
    y = nn.functional.conv2d(y, model.embed.conv1.weight, model.embed.conv1.bias, stride=2).relu()
    y = nn.functional.pad(y, (1, 1, 1, 1))
    y = nn.functional.conv2d(y, model.embed.conv2.weight, model.embed.conv2.bias, stride=2).relu()
    y = model.embed.out(y.transpose(1, 2).flatten(2))[0]
    frames = len(y)
    position, owner = list(range(frames)), [-1] * frames  # owner: the chunk of a copy
    for c in range(-(-frames // chunk)):
        for t in range((c + 1) * chunk, min((c + 1) * chunk + ahead, frames)):
            position.append(t)
            owner.append(c)
    y = y[position]
    total = len(position)
    visible = torch.zeros(total, total, dtype=torch.bool)
    bias = torch.zeros(SIZES["attention_heads"], total, total)
    for q in range(total):
        c = position[q] // chunk if owner[q] < 0 else owner[q]
        for k in range(total):
            near = c * chunk - history <= position[k] < (c + 1) * chunk
            visible[q, k] = owner[k] == c or (owner[k] < 0 and near)
            if visible[q, k]:
                distance = position[k] - position[q] + history + chunk + ahead - 1
                bias[:, q, k] = model.relative_bias[:, distance]
    earlier = [
        [earlier_frame(p - back, o, position, owner, chunk) for back in range(KERNEL)]
        for p, o in zip(position, owner, strict=True)
    ]
    for layer in model.encoders:
        if hasattr(layer, "norm1"):
            y = y + attended(layer.self_attn, layer.norm1(y), visible, bias)
            y = y + layer.feed_forward(layer.norm2(y))
            continue
        y = y + layer.feed_forward_macaron(layer.norm_ff_macaron(y)) / 2
        y = y + attended(layer.self_attn, layer.norm_mha(y), visible, bias)
        y = y + convolved(layer.conv_module, layer.norm_conv(y), earlier)
        y = layer.norm_final(y + layer.feed_forward(layer.norm_ff(y)) / 2)
    return model.after_norm(y[:frames])


def attended(attention: nn.Module, z: Tensor, visible: Tensor, bias: Tensor) -> Tensor:
    """Attention of frames (total, d) to those that they see."""
    heads = [
        f(z).view(len(z), attention.h, attention.d_k).transpose(0, 1)
        for f in (attention.linear_q, attention.linear_k, attention.linear_v)
    ]
    scores = heads[0] @ heads[1].transpose(1, 2) / attention.d_k**0.5 + bias
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return attention.linear_out((weights @ heads[2]).transpose(0, 1).flatten(1))


def earlier_frame(
    place: int, owner: int, positions: list[int], owners: list[int], chunk: int
) -> int | None:
    """Which frame is at a place, as one of a chunk or a copy for it; None before the start."""
    copied = owner >= 0 and place >= (owner + 1) * chunk
    wanted = (place, owner if copied else -1)
    known = list(zip(positions, owners, strict=True))
    return known.index(wanted) if place >= 0 else None


def convolved(module: nn.Module, z: Tensor, earlier: list[list[int | None]]) -> Tensor:
    """Conformer's convolution of frames (total, d), each over those before it, one by one."""
    first, second = (c.weight[:, :, 0] for c in (module.pointwise_conv1, module.pointwise_conv2))
    value, gate = (z @ first.T + module.pointwise_conv1.bias).chunk(2, -1)
    gated = value * gate.sigmoid()
    weight = module.depthwise_conv.weight[:, 0]  # (d, kernel), the last is of the frame itself
    rows = []
    for places in earlier:
        parts = [gated[p] * weight[:, -1 - back] for back, p in enumerate(places) if p is not None]
        rows.append(sum(parts) + module.depthwise_conv.bias)
    norm = module.norm
    y = (torch.stack(rows) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    y = y * norm.weight + norm.bias
    return y * y.sigmoid() @ second.T + module.pointwise_conv2.bias


def stream(model: nn.Module, x: Tensor, lengths: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Feed (B, T, bins) in pieces of ``step`` frames; all output and its lengths."""
    state = model.init_state(len(x))
    outputs, found = [], torch.zeros(len(x), dtype=torch.long)
    starts = list(range(0, x.shape[1], step))
    for start in starts:
        piece = x[:, start : start + step]
        own = (lengths - start).clamp(0, piece.shape[1])
        y, n, state = model.forward_chunk(piece, state, own, final=start == starts[-1])
        outputs.append(y)
        found += n
    return torch.cat(outputs, 1), found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("frames", [1, 5, 16, 33, 64, 101])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_offline_is_the_masked_definition(kind, shape, frames):
    model = encoder(kind, **shape)
    x = torch.randn(1, frames, BINS)
    y, lengths, _ = model(x, torch.tensor([frames]))
    expected = dense(model, x[0])
    assert lengths.tolist() == [len(expected)] == [-(-frames // 4)]
    assert (y[0] - expected).abs().max() < 1e-5
    assert expected.std() > 0.5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("step", [4, 16, 40])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_streaming_equals_offline_for_every_length_and_batch(kind, shape, step):
    model = encoder(kind, **shape)
    for lengths in ([1], [3], [16], [17], [100], [99, 57, 4, 1], [64, 64], [50, 90, 81]):
        lengths = torch.tensor(lengths)
        x = torch.randn(len(lengths), int(lengths.max()), BINS)
        for row, length in enumerate(lengths):
            x[row, length:] = 9.0  # the padding must not matter
        expected, expected_lengths, _ = model(x, lengths)
        y, found = stream(model, x, lengths, step)
        assert torch.equal(found, expected_lengths)
        assert y.shape == expected.shape
        for row, length in enumerate(found):
            assert (y[row, :length] - expected[row, :length]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_paper_latency_is_a_chunk_and_its_look_ahead(kind):
    """A frame may see the end of its chunk plus 160 ms, whatever the depth, and no more."""
    model = encoder(kind)
    x = torch.randn(1, 160, BINS)
    before = model(x, torch.tensor([160]))[0]
    changed = x.clone()
    changed[:, 96:] += 1.0  # from the end of chunk 4 (frames 64 to 79) plus look-ahead on
    after = model(changed, torch.tensor([160]))[0]
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:24] - after[:, 20:24]).abs().max() > 1e-3
    state = model.init_state()
    ready = []
    for start in range(0, 160, 16):
        y, _, state = model.forward_chunk(x[:, start : start + 16], state)
        ready.append(y.shape[1])
    assert ready == [0, *[4] * 9]


def tensors(state) -> int:
    """Numbers that the storages of a state hold."""
    found = {}
    for value in vars(state).values():
        parts = value if isinstance(value, tuple) else [value]
        for part in parts:
            for tensor in part if isinstance(part, tuple) else [part]:
                if isinstance(tensor, Tensor):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_state_does_not_grow(kind):
    model = encoder(kind)
    state, sizes = model.init_state(2), []
    for _ in range(200):
        _, _, state = model.forward_chunk(torch.randn(2, 16, BINS), state)
        sizes.append(tensors(state))
    assert len(set(sizes[5:])) == 1


@torch.no_grad()
def test_state_is_not_changed_and_ends():
    model = encoder()
    state = model.init_state()
    x = torch.randn(1, 32, BINS)
    first, _, after = model.forward_chunk(x, state)
    again, _, _ = model.forward_chunk(x, state)
    assert torch.equal(first, again)
    with pytest.raises(ValueError, match="multiple of 4"):
        model.forward_chunk(x[:, :3], after)
    rest, lengths, ended = model.forward_chunk(x[:, :0], after, final=True)
    assert lengths.tolist() == [rest.shape[1]] == [4]
    with pytest.raises(ValueError, match="ended"):
        model.forward_chunk(x, ended)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"chunk_ms": 150}, "chunk_ms 150 is no multiple of 40 ms"),
        ({"lookahead_ms": 50}, "lookahead_ms 50 is no multiple of 40 ms"),
        ({"history_ms": 39}, "history_ms 39 is less than a frame; choose 0 or 40"),
        ({"chunk_ms": 0}, "chunk_ms"),
        ({"history_ms": -40}, "history_ms"),
        ({"lookahead_ms": 1.5}, "lookahead_ms"),
        ({"cnn_module_kernel": 8}, "cnn_module_kernel must be an odd number from 3 on, not 8"),
    ],
)
def test_sizes_that_make_no_sense_are_one_line(shape, message):
    with pytest.raises(UserError, match=message) as caught:
        encoder("conformer" if "cnn_module_kernel" in shape else "transformer", **shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_residual_streams_as_all_variants(kind, tmp_path):
    """The method on the streaming encoder: training model and both variants stream alike."""
    from espnet_ext.encoders.compressed import compressed_encoder
    from espnet_ext.methods.deploy import deploy, variants
    from espnet_ext.methods.registry import METHODS

    cls = compressed_encoder(type(encoder(kind)), METHODS["residual"])
    model = cls(BINS, conv_channels=6, **SIZES, residual={"share": 2, "rank": 4}).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    x, lengths = torch.randn(2, 75, BINS), torch.tensor([75, 40])
    expected = model(x, lengths)[0]
    assert variants(model) == ("merged", "shared")
    for one in (model, deploy(model, "merged"), deploy(model, "shared")):
        y, _ = stream(one, x, lengths, 16)
        assert (y[0] - expected[0]).abs().max() < 1e-5
        assert (y[1, :10] - expected[1, :10]).abs().max() < 1e-5

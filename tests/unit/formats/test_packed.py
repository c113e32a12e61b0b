"""Files of packed weights: their size, what they hold, and what is wrong with a broken one."""

import json
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from espnet_ext.errors import UserError
from espnet_ext.formats import huffman, packed
from espnet_ext.formats.bits import Quantised, quantised_state
from espnet_ext.formats.packed import dequantised, member_bytes, read_member, write_member
from espnet_ext.methods.quantise import (
    fake_quantise,
    grouped_integers,
    integers,
    scale_by_deviation,
)


class Block(nn.Module):
    """Layers of all kinds that a recogniser has."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.w_1 = nn.Linear(width, 4 * width)
        self.w_2 = nn.Linear(4 * width, width)
        self.depthwise_conv = nn.Conv1d(width, width, 15, groups=width)
        self.norm = nn.BatchNorm1d(width)


def model_of(width: int = 48, layers: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleDict({"encoders": nn.ModuleList(Block(width) for _ in range(layers))})
    model["output"] = nn.Linear(width, 30)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def state_of(model: nn.Module, bits: int, per: str = "channel") -> packed.State:
    return quantised_state(
        model,
        {
            name: Quantised(*integers(weight, bits, per), bits)
            for name, weight in model.named_parameters()
            if weight.dim() > 1 and name.startswith("encoders")
        },
    )


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_file_gives_back_what_training_computed_with(bits, per, tmp_path):
    model = model_of()
    write_member(state_of(model, bits, per), tmp_path / "model.safetensors")
    found = dequantised(read_member(tmp_path / "model.safetensors"))
    plain = model.state_dict()
    assert list(found) == list(plain)
    for name, tensor in plain.items():
        if tensor.dim() > 1 and name.startswith("encoders"):
            assert torch.equal(found[name], fake_quantise(tensor, bits, per))
            assert not torch.equal(found[name], tensor)
        else:
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    model_of().load_state_dict(found)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_are_those_of_the_arithmetic(bits, per, tmp_path):
    model = model_of(96, 8)
    path = tmp_path / "model.safetensors"
    write_member(state_of(model, bits, per), path)
    weights = [p for n, p in model.named_parameters() if p.dim() > 1 and n.startswith("encoders")]
    count = sum(weight.numel() for weight in weights)
    scales = sum(len(weight) if per == "channel" else 1 for weight in weights)
    rest = sum(t.nbytes for t in model.state_dict().values()) - 4 * count
    wanted = count * bits // 8 + 4 * scales + rest
    extra = path.stat().st_size - wanted
    assert 0 < extra < 1024 + 10 * len(model.state_dict())
    assert extra < 0.02 * wanted


@pytest.mark.parametrize("bits, step", [(6, 0.75), (4, 0.5), (8, 0.2)])
def test_huffman_codes_give_back_the_same_state_in_nearly_its_entropy(bits, step, tmp_path):
    model = model_of(96, 4)
    weights = {
        name: Quantised(*integers(weight, bits, scale=scale_by_deviation(weight, step)), bits)
        for name, weight in model.named_parameters()
        if weight.dim() > 1 and name.startswith("encoders")
    }
    state = quantised_state(model, weights)
    paths = [tmp_path / "packed.safetensors", tmp_path / "huffman.safetensors"]
    for path, coded in zip(paths, (False, True), strict=True):
        write_member(state, path, coded)
        assert path.read_bytes() == member_bytes(state, coded)
    plain, coded = (read_member(path) for path in paths)
    assert list(plain) == list(coded) == list(state)
    for name, value in dequantised(state).items():
        assert torch.equal(dequantised(coded)[name], value), name
    count = sum(one.ints.numel() for one in weights.values())
    entropy = sum(one.ints.numel() * entropy_of(one.ints) for one in weights.values()) / 8
    packed_size, size = (path.stat().st_size for path in paths)
    more = size - (packed_size - count * bits // 8) - entropy
    assert -8 < more < 0.02 * entropy + 80 * len(weights)  # each weight has a table of its codes
    assert size < packed_size


def entropy_of(ints: Tensor) -> float:
    """Bits of an integer of these frequencies."""
    shares = torch.unique(ints, return_counts=True)[1] / ints.numel()
    return float(-(shares * shares.log2()).sum())


def test_huffman_codes_of_another_count_are_refused():
    ints = [1, -2, 7, -7, 8, -8, 127, -127, 3]
    codes = huffman.encode(torch.tensor(ints, dtype=torch.int8))
    more = torch.cat([codes, torch.ones(2, dtype=torch.uint8)])
    found, used = huffman.decode(more, 9)
    assert found.tolist() == ints and found.dtype == torch.int8 and used == len(codes)
    for count in (0, 4, 11):  # 10 take as many bytes as 9
        with pytest.raises(ValueError, match=f"not of {(count + 1) // 2}"):
            huffman.decode(codes, count)
    with pytest.raises(ValueError, match="not of 4"):  # those of more than half a byte
        huffman.decode(codes[:-1], 9)
    with pytest.raises(zlib.error):
        huffman.decode(torch.full((9,), 255, dtype=torch.uint8), 5)
    bomb = huffman.encode(torch.zeros(1 << 22, dtype=torch.int8))
    with pytest.raises(ValueError, match="Huffman codes of 4 bytes, not of 3"):
        huffman.decode(bomb, 5)


def test_the_same_state_makes_the_same_bytes():
    assert member_bytes(state_of(model_of(), 4)) == member_bytes(state_of(model_of(), 4))


def test_odd_counts_and_empty_tensors_come_back(tmp_path):
    state: packed.State = {
        "odd": Quantised(*integers(torch.randn(3, 3), 2), 2),
        "after": Quantised(*integers(torch.randn(5), 4, "tensor"), 4),
        "count": torch.tensor(7),
        "none": torch.zeros(0),
        "flags": torch.tensor([True, False]),
    }
    write_member(state, tmp_path / "a.safetensors")
    found = read_member(tmp_path / "a.safetensors")
    assert list(found) == list(state)
    for name, value in dequantised(state).items():
        assert torch.equal(dequantised(found)[name], value)


def rewrite(path: Path, change: dict[str, Tensor], header: dict | None = None) -> None:
    """Write the tensors of a file again, some changed, under the old digests or a new header."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is not None:
        metadata = {"espnet_ext": json.dumps(header)}
    path.write_bytes(safetensors.torch.save({**tensors, **change}, metadata))


@pytest.fixture
def member(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_member(state_of(model_of(), 4), path)
    return path


@pytest.mark.parametrize("left", [0, 1, 100, 3000, -1])
def test_a_truncated_file_is_named(left, member):
    member.write_bytes(member.read_bytes()[:left])
    with pytest.raises(UserError, match=r"is truncated or damaged .*get it again") as caught:
        read_member(member)
    assert "\n" not in str(caught.value) and str(member) in str(caught.value)


@pytest.mark.parametrize("name", ["layout", "integers", "scales", "float32", "int64"])
def test_a_change_in_any_tensor_is_found(name, member):
    with safetensors.safe_open(member, framework="pt") as file:
        tensor = file.get_tensor(name).clone()
    tensor.view(torch.uint8)[5] ^= 1
    rewrite(member, {name: tensor})
    with pytest.raises(UserError, match=f"was changed after it was written: {name} has another"):
        read_member(member)


def test_a_flipped_bit_anywhere_behind_the_header_is_found(member):
    whole = member.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in torch.linspace(header, len(whole) - 1, 25).int().tolist():
        changed = bytearray(whole)
        changed[place] ^= 0x10
        member.write_bytes(changed)
        with pytest.raises(UserError, match="was changed after it was written"):
            read_member(member)


def test_tensors_put_in_or_left_out_are_found(member):
    rewrite(member, {"more": torch.zeros(1)})
    with pytest.raises(UserError, match="was changed after it was written: its tensors"):
        read_member(member)


def test_other_files_are_refused(member, tmp_path):
    with pytest.raises(UserError, match=r"no file .*absent"):
        read_member(tmp_path / "absent.safetensors")
    rewrite(member, {}, {"kind": "member 9", "sha256": {}})
    with pytest.raises(UserError, match="holds member 9, not member 1"):
        read_member(member)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="holds something else, not member 1"):
        read_member(other)


def test_parts_that_do_not_fit_are_refused_though_their_digests_do(tmp_path):
    """A writer's fault, or a forger's who computes digests too."""
    tensors, layout = packed.join_tensors(state_of(model_of(), 4))
    short = {**tensors, "integers": tensors["integers"][:-1]}
    long = {**tensors, "scales": torch.cat([tensors["scales"], torch.ones(1)])}
    nonsense = [[1, 2], *layout]
    path = tmp_path / "a.safetensors"
    for parts, order in ((short, layout), (long, layout), (tensors, nonsense), (tensors, 5)):
        path.write_bytes(packed.file_content(dict(parts), order, packed.MEMBER))
        with pytest.raises(UserError, match=r"is damaged .*get it again"):
            read_member(path)


@pytest.mark.parametrize("kind", ["scales", "float32"])
def test_nan_is_refused_when_written_and_when_read(kind, tmp_path):
    state = state_of(model_of(), 4)
    tensors, layout = packed.join_tensors(state)
    tensors[kind][3] = float("nan")
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed.file_content(tensors, layout, packed.MEMBER))
    with pytest.raises(UserError, match=r"a\.safetensors: .*holds NaN or infinite values"):
        read_member(path)
    weight = state["encoders.0.w_1.weight"]
    assert isinstance(weight, Quantised)
    weight.scale[1] = float("nan")
    with pytest.raises(UserError, match=r"encoders\.0\.w_1\.weight holds NaN"):
        write_member(state, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_an_all_zero_row_stays_zero(tmp_path):
    model = model_of()
    with torch.no_grad():
        model["encoders"][0].w_1.weight[7] = 0.0
    write_member(state_of(model, 2), tmp_path / "a.safetensors")
    found = dequantised(read_member(tmp_path / "a.safetensors"))["encoders.0.w_1.weight"]
    assert not found[7].any() and found[6].any()


def test_groups_of_inputs_come_back_and_their_scales_take_two_bytes(tmp_path):
    weight = torch.randn(12, 96)
    state = {"w": Quantised(*grouped_integers(weight, 4), 4), "b": torch.randn(7)}
    path = tmp_path / "a.safetensors"
    write_member(state, path)
    back = read_member(path)
    assert torch.equal(back["w"].ints, state["w"].ints)
    assert torch.equal(dequantised(back)["w"], dequantised(state)["w"])
    assert torch.equal(back["b"], state["b"])
    content = 12 * 96 // 2 + 2 * 12 * 3 + 4 * 7
    assert content < path.stat().st_size < content + 1024


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 1), (3, 12), (11, 3)])
def test_scales_of_groups_that_do_not_fit_are_refused(shape, tmp_path):
    wrong = Quantised(torch.zeros(12, 96, dtype=torch.int8), torch.ones(shape), 4)
    with pytest.raises(ValueError, match="a scale of shape"):
        write_member({"w": wrong}, tmp_path / "a")

"""One file for a family: what it weighs, that members come back to the bit, and bad input."""

from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_ext.errors import UserError
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.family import FAMILY, Entry, FamilyFile, choose, write_family
from espnet_ext.formats.packed import (
    MEMBER,
    State,
    dequantised,
    file_content,
    member_bytes,
    read_content,
    write_member,
)
from espnet_ext.methods.nested_options import Member
from espnet_ext.methods.quantise import first_scale, integers, scale_by_maximum

WIDE, DEEP, SIZE = 96, 4, 32


class Block(nn.Module):
    """A feed-forward network and a normalisation with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.w_1 = nn.Linear(SIZE, WIDE)
        self.w_2 = nn.Linear(WIDE, SIZE)
        self.norm = nn.BatchNorm1d(SIZE)


class Family:
    """The states of nested members, made here by hand: no code of the nested method."""

    def __init__(self, bits=(8, 4, 2), per="channel", learnt=False, depths=((0, 1, 2, 3), (0, 1))):
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(DEEP))
        with torch.no_grad():
            for tensor in [*self.blocks.parameters(), *self.blocks.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        self.per, self.learnt = per, learnt
        self.members = [Member(d, w, b) for d in depths for w in (WIDE, 40) for b in bits]

    def scale(self, weight: Tensor, bits: int) -> Tensor:
        chosen = first_scale if self.learnt else scale_by_maximum
        return chosen(weight, bits, self.per)

    def state(self, member: Member) -> State:
        state: State = {"embed.weight": torch.arange(5.0)}
        for place, layer in enumerate(member.layers):
            for name, tensor in self.blocks[layer].state_dict().items():
                part = tensor
                if name.startswith("w_1"):
                    part = part[: member.width]
                if name == "w_2.weight":
                    part = part[:, : member.width]
                value: Tensor | Quantised = part.clone()
                if part.dim() == 2 and member.bits != 32:
                    scale = self.scale(tensor, member.bits)
                    if name == "w_1.weight" and scale.dim():
                        scale = scale[: member.width]
                    value = Quantised(*integers(part, member.bits, scale=scale), member.bits)
                if name == "norm.running_mean":  # differs between members
                    value = part + member.bits
                state[f"encoders.{place}.{name}"] = value
        return state

    def entries(self) -> list[tuple[Entry, State]]:
        found = []
        for k, member in enumerate(self.members):
            state = self.state(member)
            config = {"encoder_conf": {"layers": len(member.layers)}, "token_list": ["a", "b"]}
            size = len(member_bytes(state))
            found.append((Entry(member, size, k / 10 if k else 0.0, config), state))
        return found


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("bits", [(8, 4, 2), (4, 2), (32, 8, 6, 4, 3, 2), (32,), (2,), (6, 3)])
def test_every_member_comes_back_to_the_bit(bits, learnt, per, tmp_path):
    family = Family(bits, per, learnt)
    found = family.entries()
    write_family(found, tmp_path / "family.safetensors")
    read = FamilyFile(tmp_path / "family.safetensors")
    assert read.entries == [entry for entry, _ in found]
    for entry, state in found:
        back = read.state(entry)
        assert list(back) == list(state)
        for name, value in state.items():
            other = back[name]
            assert isinstance(other, Quantised) == isinstance(value, Quantised)
            if isinstance(value, Quantised):
                assert torch.equal(other.ints, value.ints) and other.bits == value.bits
                assert torch.equal(other.scale, value.scale)
            else:
                assert torch.equal(other, value) and other.dtype == value.dtype


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (0, 1, 3)])
def test_layers_of_a_list_are_found_under_their_other_numbers(layers, tmp_path):
    family = Family(depths=((0, 1, 2, 3), layers))
    found = family.entries()
    write_family(found, tmp_path / "family.safetensors")
    whole = [entry for entry in found if len(entry[0].member.layers) == DEEP]
    write_family(whole, tmp_path / "whole.safetensors")
    more = (tmp_path / "family.safetensors").stat().st_size
    more -= (tmp_path / "whole.safetensors").stat().st_size
    weights = len(layers) * 2 * SIZE * WIDE
    assert more < weights / 4  # nothing of the weights is there twice


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_bytes_are_those_of_one_member_and_little_more(per, tmp_path):
    family = Family(per=per)
    found = family.entries()
    path = tmp_path / "family.safetensors"
    write_family(found, path)
    weights = DEEP * 2 * SIZE * WIDE
    scales = 3 * DEEP * (SIZE + WIDE if per == "channel" else 2)
    biases = DEEP * (SIZE + WIDE)
    # weight, bias, variance; means, of each of the 3 precisions; counts, all alike; front end
    rest = DEEP * (3 * SIZE * 4 + 3 * SIZE * 4) + 8 + 5 * 4
    with safetensors.safe_open(path, framework="pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    assert sizes["integers"] == weights
    assert sizes["scales"] == 4 * scales
    assert sizes["float32"] + sizes["int64"] == 4 * biases + rest
    # 7/127 and 1/127 of the way between integers lies a border, 7 % of the weights near one
    assert 0 < sizes["refined"] < weights * (7 / 127 + 1 / 127) * 1.5 / 8 + 100
    extra = path.stat().st_size - sum(sizes.values()) + sizes["layout"]
    assert extra < 1024 + 10 * len(found[0][1]) + 120 * len(found)
    separate = sum(entry.bytes for entry, _ in found)
    assert path.stat().st_size < 0.45 * separate


def test_rounding_the_stored_integers_again_would_not_give_the_members(tmp_path):
    """The reason why there is ``refined`` besides ``integers``."""
    family = Family()
    fine, coarse = (family.state(Member((0, 1, 2, 3), WIDE, bits)) for bits in (8, 4))
    fine_weight, coarse_weight = fine["encoders.0.w_1.weight"], coarse["encoders.0.w_1.weight"]
    assert isinstance(fine_weight, Quantised) and isinstance(coarse_weight, Quantised)
    again = (fine_weight.dequantised() / coarse_weight.scale).round().clamp(-7, 7)
    wrong = (again != coarse_weight.ints).float().mean()
    assert 0.005 < wrong < 0.1
    x = torch.randn(20, SIZE)
    weights = [again * coarse_weight.scale, coarse_weight.dequantised()]
    other, own = (F.linear(x, weight) for weight in weights)
    assert (other - own).abs().max() > 0.01


def test_32_bits_hold_every_precision_without_integers(tmp_path):
    family = Family((32, 8, 6, 4, 3, 2))
    write_family(family.entries(), tmp_path / "family.safetensors")
    tensors, _ = read_content(tmp_path / "family.safetensors", FAMILY)
    assert "integers" not in tensors and "refined" not in tensors


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("family") / "family.safetensors"
    write_family(Family().entries(), path)
    return path


def test_the_best_member_is_the_nearest_that_fits():
    entries = [entry for entry, _ in Family().entries()]
    assert choose(entries).member.name == "4L-96-8b"
    assert choose(entries, depth=2).member.name == "2L-96-8b"
    assert choose(entries, depth=[0, 1], width=40, bits=2).member.name == "2L-40-2b"
    sizes = {entry.member.name: entry.bytes for entry in entries}
    # Far larger than the one that is nearest by divergence, which comes earlier in the list.
    assert sizes["2L-96-8b"] > sizes["4L-40-4b"]
    found = choose(entries, max_bytes=sizes["2L-96-8b"]).member.name
    fitting = [e for e in entries if e.bytes <= sizes["2L-96-8b"]]
    assert found == fitting[0].member.name != "2L-96-8b"
    assert choose(entries, bits=4, max_bytes=sizes["4L-96-4b"] - 1).member.name == "4L-40-4b"
    assert choose(entries, max_bytes=min(sizes.values())).bytes == min(sizes.values())


def test_without_divergences_the_best_member_has_the_most_bytes():
    entries = [Entry(e.member, e.bytes, None, e.config) for e, _ in Family().entries()]
    for limit in sorted({e.bytes for e in entries}):
        assert choose(entries, max_bytes=limit).bytes == limit


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"depth": 3}, "the family has no member of depth 3; it has 4, 2"),
        ({"depth": [0, 2]}, r"no member of depth \[0, 2\]; it has 4, 2"),
        ({"width": 50}, "no member of width 50; it has 96, 40"),
        ({"bits": 32}, "no member of bits 32; it has 8, 4, 2"),
        ({"bits": 3}, "no member of bits 3; it has 8, 4, 2"),
        ({"max_bytes": 10}, r"no member fits into 10 bytes; the smallest, 2L-40-2b, needs [\d,]+$"),
        ({"depth": 4, "max_bytes": 0}, "no member fits into 0 bytes; the smallest, 4L-40-2b, "),
    ],
)
def test_members_that_there_are_not_are_named(asked, message):
    entries = [entry for entry, _ in Family().entries()]
    with pytest.raises(UserError, match=message):
        choose(entries, **asked)


def test_values_that_there_are_but_not_together():
    entries = [e for e, _ in Family().entries() if e.member.name not in ("4L-96-2b", "4L-40-2b")]
    with pytest.raises(UserError, match="no member of depth 4, bits 2 together; it has 4L-96-8b, "):
        choose(entries, depth=4, bits=2)


@pytest.mark.parametrize("left", [0, 7, 2000, -1])
def test_a_truncated_file_is_named(left, path, tmp_path):
    broken = tmp_path / "family.safetensors"
    broken.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match="is truncated or damaged"):
        FamilyFile(broken)


def test_any_flipped_bit_is_found(path, tmp_path):
    broken = tmp_path / "family.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in torch.linspace(start, len(whole) - 1, 30).int().tolist():
        changed = bytearray(whole)
        changed[place] ^= 1
        broken.write_bytes(changed)
        with pytest.raises(UserError, match="was changed after it was written"):
            FamilyFile(broken)


def test_a_file_of_one_member_is_no_family(tmp_path):
    write_member(Family().entries()[0][1], tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"holds {MEMBER}, not {FAMILY}"):
        FamilyFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["scales", "float32"])
def test_nan_is_refused_though_its_digest_fits(kind, path, tmp_path):
    tensors, layout = read_content(path, FAMILY)
    tensors[kind][:] = float("nan")
    forged = tmp_path / "family.safetensors"
    forged.write_bytes(file_content(tensors, layout, FAMILY))
    read = FamilyFile(forged)
    with pytest.raises(UserError, match=r"family\.safetensors: .*NaN or infinite values"):
        read.state(read.entries[0])


def test_parts_that_do_not_fit_are_refused_though_their_digests_do(path, tmp_path):
    forged = tmp_path / "family.safetensors"
    for kind in ("integers", "refined", "scales", "int64"):
        tensors, layout = read_content(path, FAMILY)
        forged.write_bytes(file_content({**tensors, kind: tensors[kind][:-1]}, layout, FAMILY))
        with pytest.raises(UserError, match="is damaged"):
            FamilyFile(forged)
    tensors, layout = read_content(path, FAMILY)
    layout["members"][0]["sources"][3] = 10_000
    forged.write_bytes(file_content(tensors, layout, FAMILY))
    read = FamilyFile(forged)
    with pytest.raises(UserError, match="is damaged"):
        read.state(read.entries[0])


def test_nan_is_not_written(tmp_path):
    found = Family().entries()
    found[2][1]["encoders.1.norm.bias"][0] = float("nan")
    with pytest.raises(UserError, match=r"encoders\.1\.norm\.bias holds NaN"):
        write_family(found, tmp_path / "family.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_all_zero_row_comes_back(tmp_path):
    family = Family()
    with torch.no_grad():
        family.blocks[1].w_2.weight[3] = 0.0
    found = family.entries()
    write_family(found, tmp_path / "family.safetensors")
    read = FamilyFile(tmp_path / "family.safetensors")
    for entry in read.entries:
        weight = dequantised(read.state(entry))["encoders.1.w_2.weight"]
        assert not weight[3].any() and weight[2].any()

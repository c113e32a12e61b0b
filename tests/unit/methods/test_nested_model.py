"""Families over whole models: decoder depths and widths, and few bits for every matrix."""

import copy
import math

import pytest
import torch

from espnet_ext.bridge.deployed.variants import computing, deploy_variant, file_bytes
from espnet_ext.data.tokenizer import spelled_with
from espnet_ext.errors import UserError
from espnet_ext.formats.bits import Quantised
from espnet_ext.formats.packed import dequantised, read_member, write_member
from espnet_ext.methods.codes import Coded, fit_codebooks, token_frequencies
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.nested_options import parse_name
from espnet_ext.methods.positions import Sinusoids
from tests.fixtures import foundation
from tests.unit.models.test_nested import batch, build, kl, parts_of

OPTIONS = {"over": "model", "per": "group", "group": 4, "bits": [32, 4], "kl_ctc": 0.0}
WHISPER = OPTIONS | {"group": 8, "table": 4, "widths": [48, 24]}
WHISPER |= {"depths": [2, 1], "decoder_depths": [2, [1]], "decoder_widths": [40, 16]}
TWO = {"num_blocks": 2, "attention_heads": 2, "linear_units": 24}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A function that builds a whole Whisper as a family; its tokens."""
    folder = foundation.seeded(tmp_path_factory, 2, max_target_positions=200)

    def make(nested=WHISPER):
        from espnet_ext.bridge.build import build_model
        from espnet_ext.config.training import Config, Recipe
        from espnet_ext.data import tokenizer
        from espnet_ext.experiment import Experiment

        path = str(folder)
        espnet = {
            "frontend": "raw",
            "encoder": "stack",
            "encoder_conf": {"path": path, "frozen": False, "nested": nested},
            "decoder": "whisper",
            "decoder_conf": {"path": path},
            "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1},
            "token_type": "hugging_face",
        }
        config = Config(folder / "train_x.yaml", "x", Recipe(), espnet)
        experiment = Experiment.of(config, root=folder)
        experiment.token_list.parent.mkdir(parents=True, exist_ok=True)
        tokens = tokenizer.listed(*tokenizer.source_files(path))
        experiment.token_list.write_text("".join(f"{token}\n" for token in tokens), "utf-8")
        return build_model(experiment)

    return make


def speech():
    generator = torch.Generator().manual_seed(1)
    return {
        "speech": torch.randn(2, 9000, generator=generator) * 0.1,
        "speech_lengths": torch.tensor([9000, 7000]),
        "text": torch.tensor([[70, 71, 72], [80, 81, -1]]),
        "text_lengths": torch.tensor([3, 2]),
    }


@torch.no_grad()
def outputs(model, given=None):
    given = speech() if given is None else given
    encoded, frames = model.encode(given["speech"].clone(), given["speech_lengths"])
    texts = given["text"].clamp(min=0)
    return encoded, model.decoder(encoded, frames, texts, given["text_lengths"])[0]


@pytest.mark.parametrize("mean", [False, True])
def test_the_loss_is_that_of_plain_models_of_all_members(tmp_path, mean):
    """Of ESPnet's Transformer decoder, whose largest member teaches all others."""
    nested = OPTIONS | {"depths": [2, 1], "widths": [24, 8], "kl_decoder": 50.0, "mean": mean}
    nested |= {"decoder_depths": [2, [1]], "decoder_widths": [24, 12], "norm": "layer"}
    decoder = {**TWO, "dropout_rate": 0.0, "positional_dropout_rate": 0.0}
    decoder |= {"self_attention_dropout_rate": 0.0, "src_attention_dropout_rate": 0.0}
    model = build(tmp_path, nested, decoder_conf=decoder).eval()
    family = nested_stack(model).family
    assert len(family) == 32
    assert (family[0].name, family[-1].name) == ("2L-24+2L-24-32b", "1L-8+L1-12-4b")
    assert all(parse_name(member.name) == member for member in family)
    given = batch()
    found = [parts_of(deploy(model, member.name).train(), given) for member in family]
    decoded = found[0][3]
    expected = torch.zeros((), dtype=torch.float64)
    for loss, _, _, tokens in found[1:]:
        each = kl(decoded, tokens, given["text_lengths"] + 1)
        expected += 0.5 * loss.double().item() + 50.0 * each.item()
    expected = found[0][0].double().item() + expected.item() / (31 if mean else 1)
    total, stats, _ = model.train()(**copy.deepcopy(given))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert stats["loss_smallest"].item() == pytest.approx(found[-1][0].item(), rel=1e-5)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert any("decoders.0" in name for name in trained)


def test_every_member_is_as_it_is_alone(whisper, tmp_path):
    model = whisper().eval()
    family = nested_stack(model).family
    assert len(family) == 32
    seen = set()
    for member in family:
        made = deploy_variant(model, member.name)
        with computing(model, member.name):
            wanted = outputs(model)
        for one, other in zip(outputs(made.module), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert len(made.module.decoder.decoder.layers) == len(member.decoder)
        assert made.module.decoder.architecture["decoder_ffn_dim"] == member.decoder_width
        seen.add(round(wanted[1].double().sum().item(), 6))
    assert len(seen) == len(family)


def test_a_packed_file_holds_the_whole_model(whisper, tmp_path):
    model = whisper().eval()
    made = deploy_variant(model, "2L-48+L1-16-4b")
    path = tmp_path / "model.safetensors"
    write_member(made.state, path)
    read = read_member(path)
    plain = made.module.state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in dequantised(read).items())
    kinds = {name: type(value) for name, value in read.items()}
    assert kinds["decoder.decoder.embed_tokens.weight"] is Coded
    assert kinds["decoder.decoder.layers.0.fc1.weight"] is Quantised
    assert "decoder.decoder.layers.1.fc1.weight" not in kinds
    assert read["decoder.decoder.layers.0.fc2.weight"].scale.shape == (32, 2)
    assert kinds["encoder.stack.model.conv1.weight"] is Quantised
    assert read["decoder.decoder.embed_positions.weight"].bits == 8
    left = sum(t.numel() for t in read.values() if isinstance(t, torch.Tensor))
    assert left < 0.1 * sum(t.numel() for t in plain.values())
    assert path.stat().st_size == file_bytes(made, "2L-48+L1-16-4b")


def test_a_family_starts_from_a_plain_model(whisper):
    plain = whisper(None).eval()
    model = whisper().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.25)
    model.load_state_dict(plain.state_dict())
    for one, other in zip(outputs(model), outputs(plain), strict=True):
        assert torch.equal(one, other)
    with computing(model, "2L-48+2L-40-4b"), torch.no_grad():
        table = model.decoder.decoder.embed_tokens.weight
    # 283 tokens and 256 codes: the table is nearly kept.
    wanted = plain.decoder.decoder.embed_tokens.weight
    assert (table - wanted).square().mean() < 0.02 * wanted.square().mean()
    again = whisper().eval()
    again.load_state_dict(model.state_dict())
    with computing(again, "2L-48+2L-40-4b"), torch.no_grad():
        assert torch.equal(again.decoder.decoder.embed_tokens.weight, table)


def test_a_plain_model_may_be_the_one_to_start_from(whisper, tmp_path):
    """As ``init_param``: the check of stage 4 knows the names that loading will change."""
    from espnet_ext.bridge.training.start_model import refuse_other_start
    from espnet_ext.config.pretrained import Start

    torch.save(whisper(None).state_dict(), tmp_path / "plain.pth")
    assert refuse_other_start(whisper(), [Start(tmp_path / "plain.pth")]) == []


def test_the_codes_stay_while_their_vectors_are_trained(whisper):
    model = whisper().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**speech())[0].backward()
    table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0].tables["4"]
    codes, books = table.codes.clone(), table.books.detach().clone()
    assert bool(table.fitted) and int(codes.max()) > 100
    optimiser.step()
    model(**speech())
    assert torch.equal(table.codes, codes)
    assert not torch.equal(table.books, books)


def test_greedy_search_of_a_member_is_that_of_its_deployed_model(whisper):
    from espnet_ext.models.attention_search import attention_greedy

    model = whisper().eval()
    name = "2L-48+L1-16-32b"
    plain = deploy(model, name)
    given = speech()
    with computing(model, name), torch.no_grad():
        encoded, frames = model.encode(given["speech"].clone(), given["speech_lengths"])
        found = attention_greedy(model.decoder, encoded, frames, [9, 7])
    assert found == attention_greedy(plain.decoder, encoded, frames, [9, 7])
    assert any(found)


LETTERS = {"letters": "abcdefghijklmnop", "bits": [32, 4, 3], "table": {"4": 4, "3": 8}}


def test_tokens_of_other_letters_share_a_row_below_32_bits(whisper, tmp_path):
    model = whisper(WHISPER | LETTERS).eval()
    kept = torch.tensor(spelled_with(model.token_list, LETTERS["letters"]))
    assert 0 < int(kept.sum()) < len(kept)
    table = model.decoder.decoder.embed_tokens
    whole = table.weight.detach().clone()
    for name, size in (("2L-48+2L-40-4b", 4), ("2L-48+2L-40-3b", 8)):
        with computing(model, name), torch.no_grad():
            found = table.weight.clone()
        torch.testing.assert_close(
            found[~kept], whole[~kept].mean(0).expand_as(found[~kept]), rtol=1e-3, atol=1e-4
        )
        made, path = deploy_variant(model, name), tmp_path / f"{name}.safetensors"
        write_member(made.state, path)
        read = read_member(path)["decoder.decoder.embed_tokens.weight"]
        assert read.codes.shape == (int(kept.sum()), whole.shape[1] // size)
        assert torch.equal(read.dequantised(), found)
        # Independently: each kept row is its codes' vectors, one after the other.
        places = kept.nonzero().flatten().tolist()
        for row, place in list(enumerate(places))[::17]:
            vectors = [b[c] for b, c in zip(read.books, read.codes[row].long(), strict=True)]
            assert torch.equal(torch.cat(vectors), found[place])


def test_the_shared_row_is_trained(whisper):
    model = whisper(WHISPER | LETTERS).train()
    table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0]
    model(**speech())[0].backward()
    assert table.rest.grad.abs().sum() > 0
    kept = table.kept.clone()
    plain = whisper(None)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(table.kept, kept)


@pytest.fixture
def in_two_parts(whisper, tmp_path):
    """A family whose table is in two parts, and the masks of kept and of common tokens."""
    tokens = whisper(None).token_list
    common = [token for k, token in enumerate(tokens) if k % 3 == 0 or token.startswith("<|")]
    (tmp_path / "common.txt").write_text("".join(f"{token}\n" for token in common), "utf-8")
    parts = LETTERS | {"rare": 16, "common": str(tmp_path / "common.txt")}
    kept = torch.tensor(spelled_with(tokens, LETTERS["letters"]))
    return whisper(WHISPER | parts), kept, torch.tensor([token in common for token in tokens])


def test_tokens_of_low_ids_are_common_beside_those_of_the_list(whisper, tmp_path):
    tokens = whisper(None).token_list
    (tmp_path / "common.txt").write_text(f"{tokens[-1]}\n", "utf-8")
    listed = {"rare": 16, "frequent": 20, "common": str(tmp_path / "common.txt")}
    table = whisper(WHISPER | listed).decoder.decoder.embed_tokens.parametrizations["weight"][0]
    assert table.kept.nonzero().flatten().tolist() == [*range(20), len(tokens) - 1]


def test_rows_of_rare_tokens_have_codes_of_larger_parts(in_two_parts, tmp_path):
    model, kept, common = in_two_parts
    common, rare = common & kept, ~common & kept
    assert common.any() and rare.any()
    model.eval()
    table = model.decoder.decoder.embed_tokens
    whole = table.weight.detach().clone()
    for name, size in (("2L-48+2L-40-4b", 4), ("2L-48+2L-40-3b", 8)):
        with computing(model, name), torch.no_grad():
            found = table.weight.clone()
        made, path = deploy_variant(model, name), tmp_path / f"{name}.safetensors"
        write_member(made.state, path)
        read = read_member(path)["decoder.decoder.embed_tokens.weight"]
        assert read.codes.shape == (int(common.sum()), whole.shape[1] // size)
        assert read.rest.codes.shape == (int(rare.sum()), whole.shape[1] // 16)
        assert torch.equal(read.dequantised(), found)
        # Independently: the vectors of a token's codes, one after the other.
        for part, mask in ((read, common), (read.rest, rare)):
            for row, place in list(enumerate(mask.nonzero().flatten().tolist()))[::7]:
                codes = part.codes[row].long()
                vectors = [b[c] for b, c in zip(part.books, codes, strict=True)]
                assert torch.equal(torch.cat(vectors), found[place])
        shared = found[~kept]
        assert torch.equal(shared, shared[:1].expand_as(shared))
        error = (found - whole).square().mean(1)
        assert error[common].mean() < error[rare].mean()


def test_codebooks_weigh_each_token_by_its_frequency(in_two_parts):
    model, kept, common = in_two_parts
    whole = model.decoder.decoder.embed_tokens.weight.detach().clone()
    with computing(model.eval(), "2L-48+2L-40-4b"), torch.no_grad():
        model.decoder.decoder.embed_tokens.weight  # noqa: B018  fits them
    table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0]
    frequencies = token_frequencies(torch.arange(len(whole)))
    names = [token.startswith("<|") for token in model.token_list]  # no times are among them
    frequencies[torch.tensor(names)] = frequencies[0]  # as frequent as the first
    frequencies[[model.sos, model.eos]] = 1.0  # in every text
    for books, size, mask in (
        (table.tables["4"].books, 4, common & kept),
        (table.rest.tables["16"].books, 16, ~common & kept),
    ):
        assert not mask[: int(mask.sum())].all()
        wanted = fit_codebooks(whole[mask], size, frequencies[mask])
        torch.testing.assert_close(books.detach(), wanted)


def test_common_rows_are_trained_and_all_start_from_a_plain_model(in_two_parts, whisper):
    model = in_two_parts[0].train()
    model(**speech())[0].backward()
    table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0]
    common, rare = table.tables["4"], table.rest.tables["16"]
    assert bool(common.fitted) and common.books.grad.abs().sum() > 0
    assert bool(rare.fitted) and rare.books.grad is None  # training would only suppress them
    assert table.rest.rest.grad.abs().sum() > 0
    kept = table.kept.clone(), table.rest.kept.clone()
    model.load_state_dict(whisper(None).state_dict())
    assert torch.equal(table.kept, kept[0]) and torch.equal(table.rest.kept, kept[1])
    assert not table.rest.tables["16"].fitted


STEPS = {"encoder": 0.5, "encoder*self_attn": 0.2, "decoder": 1.0}
DEVIATION = {"over": "model", "per": "tensor", "bits": [32, 6], "kl_ctc": 0.0, "table": 2}
DEVIATION |= {"scale": "deviation", "step": STEPS, "table_step": 1.5, "decoder_depths": [2, [1]]}


def test_steps_of_parts_and_a_grid_by_huffman_codes(whisper, tmp_path):
    model = whisper(DEVIATION).train()
    model(**speech())[0].backward()
    table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0].tables["2"]
    assert table.books.grad.abs().sum() > 0 and torch.isfinite(table.books.grad).all()
    made = deploy_variant(model.eval(), "2L-48+2L-40-6b")
    sizes = {}
    for coded in (False, True):
        path = tmp_path / f"{coded}.safetensors"
        write_member(made.state, path, coded)
        sizes[coded] = path.stat().st_size
        assert sizes[coded] == file_bytes(made, "2L-48+2L-40-6b", coded)
        found = dequantised(read_member(path))
        plain = made.module.state_dict()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())
    assert sizes[True] < 0.9 * sizes[False]
    whole = deploy(model, "2L-48+2L-40-32b").state_dict()
    for name, step in (
        ("encoder.stack.model.layers.1.fc1.weight", 0.5),
        ("encoder.stack.model.layers.0.self_attn.k_proj.weight", 0.2),
        ("decoder.decoder.layers.1.fc2.weight", 1.0),
        ("decoder.decoder.layers.0.encoder_attn.q_proj.weight", 1.0),
    ):
        scale = step * whole[name].double().square().mean().sqrt().float()
        torch.testing.assert_close(made.state[name].scale, scale)
        ints = (whole[name] / made.state[name].scale).round().clamp(-31, 31)
        assert torch.equal(made.state[name].ints.float(), ints)
    rows, grid = (
        whole["decoder.decoder.embed_tokens.weight"],
        made.state["decoder.decoder.embed_tokens.weight"].dequantised(),
    )
    spread = (rows - grid.mean(0)).square().mean().sqrt()
    assert (rows - grid).square().mean().sqrt() < 0.6 * spread


@pytest.mark.parametrize("bits", [6, 8])
def test_positions_keep_their_precision_with_large_steps(whisper, bits):
    model = whisper(DEVIATION | {"bits": [32, bits], "step": STEPS | {"decoder": 3.0}}).eval()
    state = deploy_variant(model, f"2L-48+2L-40-{bits}b").state
    name = "decoder.decoder.embed_positions.weight"
    error = state[name].dequantised() - deploy(model, "2L-48+2L-40-32b").state_dict()[name]
    assert state[name].bits == 8
    assert error.abs().max() <= 0.502 * state[name].scale.max()
    assert state[name].ints.abs().max() == 127


def test_codes_of_a_grid_do_not_depend_on_the_precision_of_training(whisper):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = whisper(DEVIATION).train()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(**speech())
        table = model.decoder.decoder.embed_tokens.parametrizations["weight"][0].tables["2"]
        found.append((table.codes.clone(), table.books.detach().clone()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"step": {"encoder": 0.5}}, "step: no key begins the name decoder.decoder"),
        ({"step": STEPS | {"decodr*fc1": 0.3}}, r"step: no weight is called decodr\*fc1\*"),
        ({"bits": [32, 8, 6]}, "deviation is for one precision below 32 bits"),
        ({"step": {"encoder": 0}}, "step must be a number above 0, or one for each part"),
        ({"table": 8}, "table_step needs a table of 1 to 4"),
        ({"table": None}, "table_step needs a table without rare"),
        ({"rare": 8, "frequent": 9}, "table_step needs a table without rare"),
        ({"over": "encoder", "decoder_depths": []}, "step by parts of the model needs over: model"),
    ],
)
def test_steps_that_do_not_fit_are_refused(whisper, change, says):
    with pytest.raises(UserError, match=says):
        whisper(DEVIATION | change)


def test_positions_that_a_formula_gives_are_not_stored(whisper, tmp_path):
    model = whisper().eval()
    place = "encoder.stack.model.embed_positions.weight"
    made = deploy_variant(model, "2L-48+L1-16-4b")
    write_member(made.state, tmp_path / "model.safetensors")
    assert isinstance(read_member(tmp_path / "model.safetensors")[place], Sinusoids)
    stored = model.encoder.stack.model.embed_positions.weight
    computed = made.module.state_dict()[place]
    assert 0 < (stored - computed).abs().max() < 1e-3
    wanted = torch.tensor([math.sin(7 / 10000 ** (k / 15)) for k in range(16)])
    torch.testing.assert_close(computed[7, :16], wanted, atol=5e-4, rtol=1e-3)


def test_only_named_members_are_in_the_family(whisper):
    names = ["2L-48+L1-16-4b", "1L-24+2L-40-32b"]
    model = whisper(WHISPER | {"members": names})
    found = [member.name for member in nested_stack(model).family]
    assert found == ["2L-48+2L-40-32b", *names]


def test_sorted_units_compute_the_same_and_narrow_members_have_the_largest(whisper):
    plain = whisper(None).eval()
    model = whisper(WHISPER | {"sort_units": True}).eval()
    for one, other in zip(outputs(model), outputs(plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    again = whisper(WHISPER | {"sort_units": True}).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    again.load_state_dict(plain.state_dict())
    for one, other in zip(outputs(again), outputs(plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for found in (model, again):
        for layer in (found.encoder.stack.layers[0], found.decoder.decoder.layers[1]):
            up, down = layer.fc1.weight, layer.fc2.weight
            sizes = [float(up[i].norm() * down[:, i].norm()) for i in range(len(up))]
            assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": ["2L-48-4b"]}, "members: unknown sub-network '2L-48-4b'; did you mean"),
        ({"bits": [32, 4, 3], "table": {4: 4}}, "table has no size for 3 bits"),
        ({"table": None, "letters": "abc"}, "letters needs a table"),
        ({"table": None, "rare": 8}, "rare needs a table"),
        ({"rare": 5, "frequent": 9}, "rare: 5 does not divide the width 32 of decoder"),
        ({"rare": 8}, "rare needs frequent or common"),
        ({"frequent": 9}, "frequent needs rare"),
        ({"letters": ""}, "letters must be characters, or null"),
        ({"table": 5}, "table: 5 does not divide the width 32 of decoder"),
        ({"widths": [48, 20]}, "group: 8 does not divide the width 20"),
        ({"group": 7}, "group: 7 does not divide the width 48"),
        ({"decoder_widths": [40, 12]}, "group: 8 does not divide the width 12"),
        ({"decoder_depths": [2, 3]}, "depth 3 is more than the decoder's 2 layers"),
        ({"decoder_depths": [1]}, "decoder_depths must contain 2"),
        ({"decoder_widths": [16]}, "decoder_widths must contain 40"),
        ({"decoder_widths": [64, 40]}, "width 64 is more than the decoder's 40"),
        ({"over": "encoder"}, "decoder_depths and decoder_widths need over: model"),
        (
            {"over": "encoder", "decoder_depths": [], "decoder_widths": []},
            "table needs over: model",
        ),
        ({"weights": {"2L-48-4b": 1}}, "unknown sub-network '2L-48-4b'; did you mean"),
        ({"table": 0}, "table must be a whole number of at least 1, one for each precision"),
        ({"group": 1}, "group must be a whole number of at least 2"),
    ],
)
def test_options_that_do_not_fit_are_one_line(whisper, options, message):
    with pytest.raises(UserError, match=message) as error:
        whisper(WHISPER | options)
    assert "\n" not in str(error.value)

"""The loss of a family: against plain ESPnet models of its members; draws; statistics."""

import copy

import pytest
import torch
from torch.nn import functional as F

from espnet_ext.config.training import Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.methods.deploy import deploy
from espnet_ext.methods.nested import nested_stack
from espnet_ext.models.nested import divergence

ENCODER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 2,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "cnn_module_kernel": 7,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}
DECODER = {"num_blocks": 1, "attention_heads": 2, "linear_units": 24}
DECODER |= {
    f"{kind}_dropout_rate": 0.0 for kind in ("positional", "self_attention", "src_attention")
}
NESTED = {"depths": [2, 1], "widths": [24, 10], "bits": [32, 4]}
NESTED |= {"sub_weight": 0.7, "kl_ctc": 3.0, "kl_decoder": 200.0, "weights": {"1L-10-4b": 1.5}}
VOCABULARY = 9


def build(tmp_path, nested=NESTED, seed=3, **over):
    from espnet_ext.bridge.build import build_model

    espnet = {
        "encoder": "nested_conformer",
        "encoder_conf": {**ENCODER, "nested": nested},
        "decoder": "transformer",
        "decoder_conf": {**DECODER, "dropout_rate": 0.0},
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
        "input_size": 20,
        **over,
    }
    torch.manual_seed(seed)
    config = Config(tmp_path / "train_x.yaml", "x", Recipe(), espnet)
    model = build_model(Experiment.of(config), VOCABULARY)
    model.normalize = None
    with torch.no_grad():
        for head in (
            getattr(model.ctc, "ctc_lo", None),
            getattr(model.decoder, "output_layer", None),
        ):
            if head is not None:
                head.weight *= 20  # at random all posteriors are flat, and every divergence nothing
    return model


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "speech": torch.randn(3, 90, 20, generator=generator),
        "speech_lengths": torch.tensor([90, 77, 64]),
        "text": torch.tensor([[2, 3, 4, 5], [3, 3, 6, -1], [7, 2, -1, -1]]),
        "text_lengths": torch.tensor([4, 3, 2]),
    }


def parts_of(model, given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, CTC logits, frames and decoder logits of a plain model, step by step."""
    from espnet2.legacy.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos

    loss = model(**copy.deepcopy(given))[0]
    # Statistics move once more here, which this test does not look at.
    encoded, frames = model.encode(given["speech"], given["speech_lengths"])
    inputs, _ = add_sos_eos(given["text"], model.sos, model.eos, model.ignore_id)
    decoded, _ = model.decoder(encoded, frames, inputs, given["text_lengths"] + 1)
    return loss, model.ctc.ctc_lo(encoded), frames, decoded


def kl(teacher, student, counts) -> torch.Tensor:
    """KL(teacher || student) over unpadded steps, by its definition, utterance by utterance."""
    total = torch.zeros(())
    for one, other, count in zip(teacher, student, counts, strict=True):
        p, q = one[:count].softmax(-1).double(), other[:count].softmax(-1).double()
        total = total + (p * (p / q).log()).sum()
    return total / len(teacher)


@pytest.mark.parametrize("mean", [False, True])
def test_the_loss_is_that_of_plain_models_of_all_members(tmp_path, mean):
    model = build(tmp_path, {**NESTED, "mean": mean}).eval()
    family = nested_stack(model.encoder).family
    given = batch()
    plain = [deploy(model, member.name).train() for member in family]
    found = [parts_of(one, given) for one in plain]
    _, ctc, frames, decoded = found[0]
    expected = torch.zeros((), dtype=torch.float64)
    divergences = {"ctc": [], "decoder": []}
    for member, (loss, logits, _, tokens) in zip(family[1:], found[1:], strict=True):
        divergences["ctc"].append(kl(ctc, logits, frames))
        divergences["decoder"].append(kl(decoded, tokens, given["text_lengths"] + 1))
        weight = 1.5 if member.name == "1L-10-4b" else 0.7
        expected += weight * loss.double().item() + 3.0 * divergences["ctc"][-1].item()
        expected += 200.0 * divergences["decoder"][-1].item()
    expected = found[0][0].double().item() + expected / (len(family) - 1 if mean else 1)
    total, stats, weight = model.train()(**copy.deepcopy(given))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert weight.item() == 3
    assert stats["loss"].item() == total.item()
    assert stats["loss_largest"].item() == pytest.approx(found[0][0].item(), rel=1e-5)
    assert stats["loss_smallest"].item() == pytest.approx(found[-1][0].item(), rel=1e-5)
    for head, each in divergences.items():
        assert stats[f"kl_{head}"].item() == pytest.approx(sum(each).item() / 7, rel=1e-4)
        assert max(each) > 1e-4
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_teacher_learns_nothing_from_its_pupils(tmp_path):
    """Without the losses of the sub-networks, what only the largest has gets no KL gradient."""
    quiet = {"depths": [2, 1], "sub_weight": 0.0, "kl_ctc": 5.0, "kl_decoder": 5.0}
    gradients = []
    for nested in (quiet, {"depths": [2]}):
        model = build(tmp_path, nested).train()
        model(**batch())[0].backward()
        gradients.append(model)
    ours, alone = (dict(m.encoder.encoders[1].named_parameters()) for m in gradients)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, alone[name].grad, atol=1e-6, rtol=1e-4)
    first = [m.encoder.encoders[0].self_attn.linear_q.weight.grad for m in gradients]
    assert (first[0] - first[1]).abs().max() > 1e-4  # the pupil's layer does get one


def test_divergence_of_bfloat16_and_of_padding():
    teacher, student = torch.randn(2, 2, 5, 4)
    counts = torch.tensor([5, 2])
    expected = kl(teacher, student, counts)
    assert divergence(teacher, student, counts).item() == pytest.approx(expected.item(), rel=1e-5)
    student[1, 2:] = float("nan")
    assert divergence(teacher, student, counts).item() == pytest.approx(expected.item(), rel=1e-5)
    rounded = divergence(teacher.bfloat16(), student.bfloat16(), counts)
    assert rounded.dtype == torch.float32
    assert divergence(teacher, teacher, counts).abs() < 1e-6


def test_a_transformer_family_without_decoder_and_evaluation_of_all_members(tmp_path):
    conf = {k: v for k, v in ENCODER.items() if k not in ("macaron_style", "rel_pos_type")}
    conf.pop("cnn_module_kernel")
    model = build(
        tmp_path,
        encoder="nested_transformer",
        encoder_conf={**conf, "nested": {**NESTED, "sample": 1}},
        model_conf={"ctc_weight": 1.0, "report_cer": True},
    )
    total, stats, _ = model(**batch())
    names = [member.name for member in nested_stack(model.encoder).family]
    assert all(f"cer_ctc_{name}" in stats for name in names)
    mean = sum(stats[f"loss_ctc_{name}"].item() for name in names) / len(names)
    assert stats["loss_ctc_mean"].item() == pytest.approx(mean, rel=1e-6)
    assert "kl_decoder" not in stats
    again, _, _ = model(**batch())
    assert again.item() == total.item()  # evaluation draws nothing
    # The encoder alone is the largest member, as decoding uses it.
    encoded, _ = model.encode(batch()["speech"], batch()["speech_lengths"])
    largest, _ = deploy(model).encode(batch()["speech"], batch()["speech_lengths"])
    assert (encoded - largest).abs().max() < 1e-5


def test_a_training_that_goes_on_draws_what_it_would_have_drawn(tmp_path, monkeypatch):
    from espnet_ext.methods.nested import NestedStack

    seen = []
    running = NestedStack.running
    monkeypatch.setattr(
        NestedStack, "running", lambda self, chosen: seen.append(chosen) or running(self, chosen)
    )
    nested = {"depths": [2, 1], "widths": [24, 16, 10], "bits": [32, 8, 4], "sample": 2}
    model = build(tmp_path, nested).train()
    states = []
    for step in range(6):
        states.append(copy.deepcopy(model.state_dict()))
        _, stats, _ = model(**batch(step))
        assert set(stats) >= {"loss", "loss_largest", "loss_smallest", "loss_others", "kl_ctc"}
        assert not any("L-" in name for name in stats)  # named by role: others may draw others
    straight = list(seen)
    assert len({tuple(chosen) for chosen in straight}) > 2
    seen.clear()
    again = build(tmp_path, nested, seed=8).train()
    again.load_state_dict(states[3])
    for step in range(3, 6):
        again(**batch(step))
    assert seen == straight[3:]


def test_what_the_loss_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="kl_ctc needs CTC"):
        build(tmp_path, model_conf={"ctc_weight": 0.0})
    with pytest.raises(UserError, match="kl_decoder: 0"):
        build(tmp_path, decoder="transducer", decoder_conf={"hidden_size": 8}, joint_net_conf={})


def test_classification_is_refused(tmp_path):
    from espnet_ext.config.recipe_errors import recipe_problems

    recipe = Recipe(task="cls", decode={"classify": {}})
    found = recipe_problems(
        Config(tmp_path / "x.yaml", "x", recipe, {"encoder": "nested_conformer"})
    )
    assert any("a nested family is for task asr or st" in problem for problem in found)


@pytest.mark.parametrize("encoder", ["nested_conformer", "stack"])
@pytest.mark.parametrize("bits", [[32, 4], [4]])  # family_loss knows no teacher
def test_a_family_has_no_other_teacher(tmp_path, encoder, bits):
    from espnet_ext.config.recipe_errors import recipe_problems

    espnet = {"encoder": encoder, "encoder_conf": {"nested": {"bits": bits}}}
    config = Config(tmp_path / "x.yaml", "x", Recipe(teacher="exp/y"), espnet)
    assert any("teacher is not for a nested family" in one for one in recipe_problems(config))


def test_f_kl_div_is_the_definition():
    """The direction of torch's kl_div: input is the pupil's log-probabilities."""
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.8])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(
        F.kl_div(q.log(), p.log(), reduction="sum", log_target=True), expected
    )

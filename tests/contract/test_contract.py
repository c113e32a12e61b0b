"""Requirements on every method, on every module; see ``conftest`` for how a method joins."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from espnet_ext.errors import UserError
from espnet_ext.methods.deploy import PLAIN, deploy, footprint, variants
from espnet_ext.methods.nested import nested_stack
from espnet_ext.methods.registry import METHODS
from tests.contract.outputs import output, shapes

# An encoder's output is of order 1 to 10 after its last normalisation.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def as_variant(model: nn.Module, variant: str) -> contextlib.AbstractContextManager:
    """Inside, the training model computes what ``variant`` shall: a family has one for each."""
    family = nested_stack(model)
    return contextlib.nullcontext() if family is None else family.as_member(variant)


def storages(model: nn.Module) -> int:
    return len({p.untyped_storage().data_ptr() for p in model.state_dict().values()})


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_output_is_the_same(case, tools, dtype):
    model = case.model().to(dtype)
    x, lengths = tools.batch(dtype)
    outputs = []
    for variant in variants(model):
        with as_variant(model, variant):
            expected = output(model, x, lengths)
        outputs.append(expected)
        assert difference(output(deploy(model, variant), x, lengths), expected) < TOLERANCE[dtype]
        assert expected.std() > 0.1  # an output of zeros would be "the same" too
    members = outputs[2:] if nested_stack(model) else []  # after merged, which is the first one
    assert all(difference(outputs[0], other) > 1e-3 for other in members)


def test_method_matters(case, tools):
    """Without the method's parameters, and without training, the output is another one."""
    model = case.model()
    x, lengths = tools.batch()
    expected = output(deploy(model), x, lengths)
    fresh = tools.randomise(case.plain(), seed=3).eval()
    assert difference(output(fresh, x, lengths), expected) > 1e-2
    own = case.parameters(model)
    assert own
    with torch.no_grad():
        for parameter in own.values():
            parameter.zero_()
    assert difference(output(deploy(model), x, lengths), expected) > 1e-2


def test_deploy_changes_nothing(case, tools):
    model = case.model()
    x, lengths = tools.batch()
    model(x, lengths)  # with a graph: some modules keep tensors of the last pass
    before = copy.deepcopy(model.state_dict())
    expected = output(model, x, lengths)
    random_state = torch.get_rng_state()
    deployed = deploy(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not ({id(t) for t in deployed.parameters()} & {id(t) for t in model.parameters()})
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()  # nothing is shared with the source
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(output(model, x, lengths), expected)


def test_source_still_trains(case, tools):
    """A deep copy shares its generated class: deploying one must not break the other."""
    model = case.model()
    twin = copy.deepcopy(model)
    deploy(twin)
    deploy(model)
    x, lengths = tools.batch()
    for either in (model, twin):
        either.train()
        before = copy.deepcopy(either.state_dict())
        optimiser = torch.optim.SGD(either.parameters(), lr=0.1)
        either(x, lengths)[0].square().mean().backward()
        optimiser.step()
        changed = [
            n for n in case.parameters(either) if not torch.equal(before[n], either.state_dict()[n])
        ]
        assert changed
        deploy(either.eval())


def test_nothing_is_left_to_deploy(case, tools):
    deployed = deploy(case.model())
    assert not any(parametrize.is_parametrized(m) for m in deployed.modules())
    assert not deployed.training
    assert PLAIN in variants(deployed)
    again = deploy(deployed)
    assert shapes(again) == shapes(deployed)
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            again.state_dict().values(), deployed.state_dict().values(), strict=True
        )
    )
    x, lengths = tools.batch()
    assert torch.equal(output(again, x, lengths), output(deployed, x, lengths))


def test_deployed_is_the_plain_model(case, tools):
    """Same parameters and shapes; the untouched encoder loads the weights and agrees."""
    model = case.model()
    deployed, plain = deploy(model), case.plain().eval()
    assert shapes(deployed) == shapes(plain)
    assert footprint(deployed) == footprint(plain)
    plain.load_state_dict(deployed.state_dict(), strict=True)
    x, lengths = tools.batch()
    assert difference(output(plain, x, lengths), output(model, x, lengths)) < 1e-5


def test_sharing_survives(case):
    """What was one tensor or one module in the plain model is one in the deployed one."""
    plain, model = case.plain(), case.model()
    deployed = deploy(model)
    assert storages(deployed) == storages(plain)
    assert len(list(deployed.modules())) == len(list(plain.modules()))
    assert len(list(deployed.parameters())) == len(list(plain.parameters()))
    if case.target == "tied":
        first, second, third = deployed.encoders
        assert first is third
        assert first is not second
        assert first.w_1.weight is second.w_1.weight
        assert first.linear_q.bias is second.linear_q.bias
        assert first.scale is second.scale
    # Deploying a copy keeps it too: averaging loads into a copy.
    assert storages(deploy(copy.deepcopy(model))) == storages(plain)


def test_average_deploys(case, tools):
    one, other = (tools.randomise(case.build(), seed).eval() for seed in (1, 2))
    states = [one.state_dict(), other.state_dict()]
    average = {
        name: (states[0][name] + states[1][name]) / 2 if states[0][name].is_floating_point() else t
        for name, t in states[0].items()
    }
    model = case.build().eval()
    model.load_state_dict(average, strict=True)
    x, lengths = tools.batch()
    expected = output(model, x, lengths)
    assert difference(output(deploy(model), x, lengths), expected) < 1e-5
    assert difference(output(deploy(one), x, lengths), expected) > 1e-2


def test_batch_equals_each_alone(case, tools):
    """Padding is not seen: neither by the training model nor by the deployed one."""
    model = case.model()
    x, lengths = tools.batch()
    if case.target in tools.SEES_PADDING:
        lengths = torch.full_like(lengths, x.shape[1])
    x[1, lengths[1] :] = 7.0  # the padding must not matter
    for either in (model, deploy(model)):
        with torch.no_grad():
            together, out_lengths, _ = either(x, lengths)
            for row, length in enumerate(lengths):
                alone, alone_lengths, _ = either(x[row : row + 1, :length], length[None])
                assert out_lengths[row] == alone_lengths[0]
                kept = together[row, : out_lengths[row]]
                assert difference(kept, alone[0, : out_lengths[row]]) < 1e-5


def is_cancelled(name: str) -> bool:
    """True for a bias of keys: softmax cancels it, only rounding is left of its gradient."""
    return "linear_k.bias" in name or "linear_k.parametrizations.bias" in name


def training(model: nn.Module) -> nn.Module:
    """The model in training, but that no mean of a batch cancels the bias before it."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.Dropout):
            module.eval()
    return model


def test_gradients_reach_every_parameter(case, tools):
    model = training(case.model())
    x, lengths = tools.batch()
    y, _, _ = model(x, lengths)
    (y * torch.randn(y.shape)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not is_cancelled(name):
            assert parameter.grad.abs().max() > 1e-6, name


def test_trains_in_bfloat16(case, tools):
    """Under autocast, as ``cpu_dtype: bfloat16`` and GPUs train: products come in bfloat16."""
    model = case.build()
    x, lengths = tools.batch()
    exact = output(model.eval(), x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, lengths)[0]
    assert 0 < difference(rounded.detach().float(), exact) < 0.2 * exact.abs().max()
    model.zero_grad()
    rounded.float().square().mean().backward()
    for name, parameter in case.parameters(model).items():
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


def test_one_layer_alone(case, tools):
    """``apply_layer`` is how the CTC output, which is outside the encoder, gets the method."""
    method = METHODS[case.method]
    options = method.parse(case.options)
    x, _ = tools.batch()
    for layer in (nn.Linear(20, 7), nn.Linear(20, 7, bias=False)):
        plain = shapes(layer)
        method.apply_layer(layer, options)
        tools.randomise(layer).eval()
        deployed = deploy(layer)
        assert type(deployed) is nn.Linear
        assert shapes(deployed) == plain
        with torch.no_grad():
            assert difference(deployed(x), layer(x)) < 1e-5
        with pytest.raises(UserError):
            method.apply_layer(layer, options)  # one method a layer


def test_training_moves_every_parameter(case, tools):
    """From the method's initialisation: no saddle point, where all gradients are zero."""
    model = training(case.build())
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, lengths = tools.batch()
    target = torch.randn(model(x, lengths)[0].shape)  # one number has no gradient after a norm
    for _ in range(3):
        optimiser.zero_grad()
        (model(x, lengths)[0] - target).square().mean().backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert is_cancelled(name) or not torch.equal(parameter, before[name]), name


def losses(case, tools, seed: int) -> list[float]:
    torch.manual_seed(seed)
    model = case.build()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, lengths = tools.batch()
    target = torch.randn(model(x, lengths)[0].shape)  # one number has no gradient after a norm
    found = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (model(x, lengths)[0] - target).square().mean()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def test_same_seed_same_losses(case, tools):
    first = losses(case, tools, seed=5)
    assert losses(case, tools, seed=5) == first
    assert losses(case, tools, seed=6) != first
    assert first[-1] < first[0]


def test_refusals(case):
    model = case.model()

    def refused(*arguments) -> None:
        with pytest.raises(UserError) as caught:
            deploy(*arguments)
        assert "\n" not in str(caught.value)

    refused(model, "no such variant")
    refused(model.train())
    model.eval()
    deploy(model)
    parameter = next(iter(case.parameters(model).values()))
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            parameter.flatten()[0] = value
        refused(model)

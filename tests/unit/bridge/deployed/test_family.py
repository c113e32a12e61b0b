"""Members of a family deployed, packed and in one file, against the training model."""

import argparse
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.files import weights_file
from tests.fixtures import families

INTEGERS = {"depths": [3, 1], "widths": [64, 24], "bits": [8, 4, 2], "kl_decoder": 0.0}
# Everything else that options can do, and 32 bits with the others.
FLOATS = {
    "depths": [3, [0, 2]],
    "bits": [32, 4],
    "per": "tensor",
    "scale": "learnt",
    "kl_decoder": 0.0,
}


def source() -> Any:
    """Input of the models: waves."""
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    return SpeechInput(families.RATE)


class Deployed:
    """A trained-like family and what stage 5 makes of it."""

    def __init__(self, root: Path, base: dict[str, Any] = families.ESPNET, **nested: Any):
        import torch

        from espnet_ext.bridge.checkpoint import load_model
        from espnet_ext.bridge.deployed.folder import Speech
        from espnet_ext.methods.nested import nested_stack

        self.root = root
        self.exp = families.make(root, base, **nested)
        self.config, self.checkpoint = self.exp / "config.yaml", self.exp / "1epoch.pth"
        self.trained = load_model(self.config, self.checkpoint)
        self.stack: Any = nested_stack(self.trained)
        waves = [torch.from_numpy(families.wave(s, k)) for k, s in enumerate((1.0, 1.7))]
        self.speech = Speech(waves, source())
        self.written: list[dict] = []

    def deploy(self, variant: str) -> Path:
        """The folder of a variant."""
        from espnet_ext.bridge.deployed.folder import deploy_experiment

        config = load_config(self.root / "conf/train_family.yaml")
        experiment = Experiment.of(config, variant, self.root)
        if not experiment.deployed.exists():
            deploy_experiment(experiment, self.checkpoint, self.speech)
        return experiment.deployed

    @property
    def family(self) -> Path:
        """The family file."""
        from espnet_ext.bridge.deployed.family import write_family_models

        path = self.exp / "deploy/family/family.safetensors"
        if not path.exists():
            self.written = write_family_models(self.config, self.checkpoint, self.speech, path)
        return path

    def outputs(self, model: Any, member: str | None = None) -> list:
        """Encoder outputs on speech, of the training model as the member."""
        chosen = contextlib.nullcontext() if member is None else self.stack.as_member(member)
        with chosen:
            return self.speech.outputs(model, 20)


@pytest.fixture(scope="module")
def integer_family(tmp_path_factory):
    return Deployed(tmp_path_factory.mktemp("integers"), **INTEGERS)


@pytest.fixture(scope="module")
def float_family(tmp_path_factory):
    return Deployed(tmp_path_factory.mktemp("floats"), **FLOATS)


@pytest.fixture(params=["integers", "floats"])
def experiment(request, integer_family, float_family):
    return integer_family if request.param == "integers" else float_family


def test_packed_extracted_and_training_model_agree(experiment):
    import torch

    from espnet_ext.bridge.checkpoint import load_model
    from espnet_ext.methods.deploy import deploy

    largest = experiment.outputs(experiment.trained)
    for member in experiment.stack.family:
        folder = experiment.deploy(member.name)
        made = json.loads((folder / "deploy.json").read_text())
        packed = member.bits < 32
        assert (folder / "model.safetensors").exists() == packed
        assert (folder / "model.pth").exists() != packed
        assert made["verified"]["max_difference"] <= 1e-5
        read = load_model(folder / "config.yaml", weights_file(folder))
        extracted = deploy(experiment.trained, member.name)
        trained = experiment.outputs(experiment.trained, member.name)
        for model in (read, extracted):
            for one, other in zip(experiment.outputs(model), trained, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        if member != experiment.stack.family[0]:
            assert any((a - b).abs().max() > 0.01 for a, b in zip(trained, largest, strict=True))


def test_bytes_on_disk_are_those_of_the_arithmetic(experiment):
    from espnet_ext.methods.deploy import deploy
    from espnet_ext.methods.nested_precision import quantised_weights

    for member in experiment.stack.family:
        if member.bits == 32:
            continue
        folder = experiment.deploy(member.name)
        plain: Any = deploy(experiment.trained, member.name)
        weights = quantised_weights(plain.encoder).values()
        count = sum(weight.numel() for weight in weights)
        channels = experiment.stack.options.per == "channel"
        scales = sum(len(weight) if channels else 1 for weight in weights)
        rest = sum(t.nbytes for t in plain.state_dict().values()) - 4 * count
        # Each weight's integers end at a byte: at most one more for each weight.
        wanted = count * member.bits / 8 + 4 * scales + rest
        extra = (folder / "model.safetensors").stat().st_size - wanted
        assert 0 < extra < 1024 + 10 * len(plain.state_dict()) + len(weights)
        made = json.loads((folder / "deploy.json").read_text())
        assert made["bytes"] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("method", ["ctc_greedy", "ctc_att_beam"])
def test_a_packed_member_decodes_as_its_products_in_stock_espnet(integer_family, method, tmp_path):
    import torch

    from espnet_ext.bridge.decoding.decoder import Decoder
    from espnet_ext.formats.packed import dequantised, read_member

    options = {"beam_size": 3} if method == "ctc_att_beam" else {}
    texts = []
    for name in ("3L-64-4b", "1L-24-2b"):
        packed = integer_family.deploy(name)
        plain = tmp_path / name
        shutil.copytree(packed, plain, ignore=shutil.ignore_patterns("*.safetensors", "*.json"))
        torch.save(dequantised(read_member(packed / "model.safetensors")), plain / "model.pth")
        found = []
        for folder in (packed, plain):
            decoder = Decoder(folder, method, options, source())
            row = ("u1", str(integer_family.root / "data/dev/u1.wav"))
            found += [text for _, text, *_ in decoder.decode([row])]
        assert found[0] == found[1]
        texts.append(found[0])
    assert texts[0] and texts[0] != texts[1]


def test_every_member_comes_out_of_the_family_file_as_it_is_deployed(experiment):
    import torch

    from espnet_ext.bridge.checkpoint import load_model
    from espnet_ext.bridge.deployed.family import load

    for member in experiment.stack.family:
        layers = list(member.layers)
        model, entry = load(experiment.family, layers, member.width, member.bits)
        assert entry.member == member and not model.training
        folder = experiment.deploy(member.name)
        assert entry.bytes == weights_file(folder).stat().st_size
        deployed = load_model(folder / "config.yaml", weights_file(folder)).state_dict()
        assert list(model.state_dict()) == list(deployed)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, deployed[name]), name
        trained = experiment.outputs(experiment.trained, member.name)
        for one, other in zip(experiment.outputs(model), trained, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_family_file_takes_little_more_than_its_largest_member(experiment):
    size = experiment.family.stat().st_size
    apart = [weights_file(experiment.deploy(m.name)) for m in experiment.stack.family]
    largest = apart[0].stat().st_size
    assert size < 0.75 * sum(path.stat().st_size for path in apart)
    statistics = 4 * 2 * 32 * sum(len(m.layers) for m in experiment.stack.family)
    names = 40 * len(experiment.trained.state_dict())
    assert size - largest < 0.3 * largest + statistics + names
    listed = {one["name"]: one for one in experiment.written}
    assert list(listed) == [member.name for member in experiment.stack.family]
    assert all(one["max_difference"] <= 1e-5 for one in listed.values())


def test_the_best_member_is_the_one_whose_posteriors_are_nearest(experiment):
    import torch

    from espnet_ext.bridge.deployed.family import load

    model: Any = experiment.trained
    ctc = {}
    for member in experiment.stack.family:
        outputs = experiment.outputs(model, member.name)
        logits = [model.ctc.ctc_lo(x[0]).double() for x in outputs]
        ctc[member.name] = torch.cat(logits).log_softmax(-1)
    teacher = ctc[experiment.stack.family[0].name]
    divergence = {
        name: (teacher.exp() * (teacher - own)).sum(1).mean().item() for name, own in ctc.items()
    }
    family = experiment.family
    listed = {one["name"]: one for one in experiment.written}
    for name, value in divergence.items():
        assert listed[name]["divergence"] == pytest.approx(value, abs=1e-4, rel=1e-3)
    assert load(family).entry.member == experiment.stack.family[0]
    for limit in sorted({one["bytes"] for one in listed.values()}):
        fitting = [name for name, one in listed.items() if one["bytes"] <= limit]
        entry = load(family, max_bytes=limit).entry
        assert entry.member.name == min(fitting, key=lambda name: listed[name]["divergence"])
        assert entry.bytes <= limit


def test_a_pretrained_stack_comes_out_without_the_folder_it_came_from(tmp_path):
    import torch

    from espnet_ext.bridge.checkpoint import load_model
    from espnet_ext.bridge.deployed.family import load

    pretrained = tmp_path / "wav2vec2"
    options = {"depths": [4, [0, 2]], "widths": [48, 20], "bits": [8, 2], "kl_decoder": 0.0}
    base = families.wav2vec2(pretrained)
    experiment = Deployed(tmp_path / "recipe", base, **options)
    for name in ("4L-48-8b", "L0.2-20-2b"):
        assert sorted(p.name for p in experiment.deploy(name).iterdir()) == [
            "config.yaml",
            "deploy.json",
            "meta.yaml",
            "model.safetensors",
            "tokens.txt",
        ]
    family = experiment.family
    pretrained.rename(tmp_path / "gone")
    for member in experiment.stack.family:
        model = load(family, list(member.layers), member.width, member.bits).model
        trained = experiment.outputs(experiment.trained, member.name)
        for one, other in zip(experiment.outputs(model), trained, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    folder = experiment.deploy("L0.2-20-2b")
    model = load_model(folder / "config.yaml", folder / "model.safetensors")
    for one, other in zip(experiment.outputs(model), trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_after_training_is_that_of_the_weights_of_the_merged_model(float_family, bits):
    import torch

    from espnet_ext.bridge.checkpoint import load_model
    from espnet_ext.methods.deploy import deploy

    folder = float_family.deploy(f"merged+{bits}b")
    found = load_model(folder / "config.yaml", weights_file(folder)).state_dict()
    merged = deploy(float_family.trained).state_dict()
    rounded = 0
    for name, tensor in merged.items():
        wanted = tensor
        if name.startswith("encoder.encoders.") and tensor.dim() > 1 and "pos_bias" not in name:
            rows = tensor.flatten(1)
            limit = 2 ** (bits - 1) - 1
            step = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / limit
            wanted = ((rows / step).round() * step).view(tensor.shape)
            rounded += 1
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-5)
    assert rounded > 30
    merged_size = weights_file(float_family.deploy("merged")).stat().st_size
    assert weights_file(folder).stat().st_size < merged_size * (bits / 32 + 0.45)


def test_what_cannot_be_rounded_is_named(integer_family, float_family):
    with pytest.raises(UserError, match="3L-64-8b is rounded already in training"):
        integer_family.deploy("merged+4b")
    with pytest.raises(UserError, match=r"unknown variant '3L-64-4b\+2b'; did you mean"):
        float_family.deploy("3L-64-4b+2b")
    with pytest.raises(UserError, match="bits must be one of 32, 8, 6, 4, 3, 2, not 5"):
        float_family.deploy("merged+5b")
    with pytest.raises(UserError, match="has no integers"):
        float_family.deploy("merged+32b")
    with pytest.raises(UserError, match=r"unknown variant '3L-64-4c'; did you mean '3L-64-4b'\?"):
        float_family.deploy("3L-64-4c")


# ---- the verb


def run(experiment, monkeypatch, capsys, *, ok: bool = True, **options: Any) -> str:
    """Run deploy in the recipe's folder; return what it prints."""
    from espnet_ext.cli import deploy

    monkeypatch.chdir(experiment.root)
    given = {"tag": None, "variant": None, "family": False, "checkpoint": experiment.checkpoint}
    args = argparse.Namespace(config="conf/train_family.yaml", **{**given, **options})
    capsys.readouterr()
    code = run_cli("espnet-ext deploy", lambda: deploy.run(args))
    out, err = capsys.readouterr()
    assert code == (0 if ok else 1), err
    if ok:
        return out
    (line,) = [one for one in err.splitlines() if one]
    return line


@pytest.fixture
def fresh(integer_family, tmp_path):
    """A copy of the experiment in which nothing was deployed."""
    copy = Deployed.__new__(Deployed)
    copy.__dict__.update(integer_family.__dict__)
    copy.root = tmp_path / "recipe"
    ignore = shutil.ignore_patterns("deploy")
    shutil.copytree(integer_family.root, copy.root, ignore=ignore)
    copy.exp = copy.root / "exp/family"
    copy.config, copy.checkpoint = copy.exp / "config.yaml", copy.exp / "1epoch.pth"
    return copy


def test_the_verb_writes_a_family_and_says_when_it_is_up_to_date(fresh, monkeypatch, capsys):
    said = run(fresh, monkeypatch, capsys, family=True)
    path = fresh.exp / "deploy/family/family.safetensors"
    assert "12 members" in said and f"{path.stat().st_size:,} bytes" in said
    listed = json.loads((path.parent / "family.json").read_text())
    assert listed["bytes"] == path.stat().st_size and len(listed["members"]) == 12
    assert "up to date" in run(fresh, monkeypatch, capsys, family=True)
    said = run(fresh, monkeypatch, capsys, variant="1L-24-4b")
    assert "deploy/1L-24-4b/model.safetensors" in said and "bytes" in said


def test_faults_are_one_line_and_leave_nothing(fresh, monkeypatch, capsys):
    import torch

    line = run(fresh, monkeypatch, capsys, ok=False, variant="2L-64-8b")
    assert "unknown variant '2L-64-8b'" in line
    line = run(fresh, monkeypatch, capsys, ok=False, family=True, variant="merged")
    assert "leave --variant out" in line
    state = torch.load(fresh.checkpoint)
    name = "encoder.encoders.1.feed_forward.w_1.parametrizations.weight.original"
    state[name][2, 2] = float("nan")
    torch.save(state, fresh.checkpoint)
    for options in ({"family": True}, {"variant": "3L-64-4b"}):
        line = run(fresh, monkeypatch, capsys, ok=False, **options)
        assert name in line and "NaN" in line
    assert not list(fresh.exp.glob("deploy/*/*"))


def test_a_nan_scale_is_one_line(float_family, tmp_path, monkeypatch, capsys):
    import torch

    state = torch.load(float_family.checkpoint)
    (name, *_) = [key for key in state if ".scales." in key]
    state[name].fill_(float("nan"))
    broken = tmp_path / "broken.pth"
    torch.save(state, broken)
    for options in ({"family": True, "tag": "family"}, {"variant": "3L-64-4b"}):
        line = run(float_family, monkeypatch, capsys, ok=False, checkpoint=broken, **options)
        assert "NaN" in line and "train again or use another epoch" in line


def test_a_model_that_is_no_family_has_no_family_file(fresh, monkeypatch, capsys):
    folder = fresh.deploy("1L-24-8b")
    import torch

    from espnet_ext.formats.digests import read_config
    from espnet_ext.formats.packed import dequantised, read_member

    (fresh.exp / "config.yaml").write_text(yaml.safe_dump(read_config(folder / "config.yaml")))
    torch.save(dequantised(read_member(folder / "model.safetensors")), fresh.checkpoint)
    line = run(fresh, monkeypatch, capsys, ok=False, family=True)
    assert "trains no family: choose an encoder nested_*" in line


def test_a_broken_packed_file_is_one_line_when_it_is_decoded(fresh):
    from espnet_ext.bridge.decoding.decoder import Decoder

    folder = fresh.deploy("1L-24-4b")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-10], "is truncated or damaged"),
        (whole[:-3] + b"\x01\x02\x03", "was changed after it was written: "),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            Decoder(folder, "ctc_greedy", {}, source())
    path.write_bytes(whole)
    other = fresh.deploy("3L-64-4b")
    shutil.copy(other / "config.yaml", folder)
    with pytest.raises(UserError, match=r"1L-24-4b/config\.yaml was changed: its SHA-256"):
        Decoder(folder, "ctc_greedy", {}, source())
    (folder / "deploy.json").unlink()
    with pytest.raises(UserError, match="is of another architecture"):
        Decoder(folder, "ctc_greedy", {}, source())


def test_scales_within_a_channel_have_no_file_of_all_members(tmp_path):
    made = Deployed(tmp_path, bits=[32, 8], kl_decoder=0.0, per="group", group=4)
    with pytest.raises(UserError, match="family per: group has no file of all members"):
        _ = made.family

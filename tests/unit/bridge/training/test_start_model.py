"""Models that a training starts from: which differ, and in what."""

import pytest
import yaml

from espnet_ext.config.pretrained import Start
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from tests.fixtures.miniature import ROOT
from tests.fixtures.streams import ESPNET


def test_wrong_models_to_start_from(experiment, tmp_path):
    import torch

    from espnet_ext.bridge.build import build_model
    from espnet_ext.bridge.training.start_model import refuse_other_start
    from espnet_ext.config.training import load_config

    def config(name, **residual):
        conf = {**ESPNET["encoder_conf"], "residual": residual}
        path = tmp_path / f"train_{name}.yaml"
        path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": conf}))
        return Experiment.of(load_config(path))

    shared = config("shared", share=2, rank=0, diagonal=False)
    model = build_model(shared)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    checkpoint = tmp_path / "shared.pth"
    torch.save(model.state_dict(), checkpoint)
    residual = config("residual", share=2, rank=2)
    refuse_other_start(build_model(residual), [Start(checkpoint)])
    finer = config("finer", share=1, rank=0, diagonal=False)
    refuse_other_start(build_model(finer), [Start(checkpoint)])
    with pytest.raises(UserError, match=r"pth encoder is of .* differ, here they are shared"):
        coarser = build_model(config("coarse", share=4, rank=2))
        refuse_other_start(coarser, [Start(checkpoint, "encoder", "encoder")])
    for other, said in (
        (config("coarser", share=4, rank=2), "differ, here they are shared"),
        (config("sites", share=2, rank=2, sites=["ffn"]), "of another model"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_other_start(build_model(other), [Start(checkpoint)])
        assert "\n" not in str(caught.value)
    wide = {**ESPNET["encoder_conf"], "linear_units": 10, "residual": {"share": 2, "rank": 2}}
    path = tmp_path / "train_wide.yaml"
    path.write_text(yaml.safe_dump({**ESPNET, "encoder_conf": wide}))
    with pytest.raises(UserError, match="has shape"):
        refuse_other_start(build_model(Experiment.of(load_config(path))), [Start(checkpoint)])


def test_parts_of_wrong_models_to_start_from(tmp_path):
    import torch

    from espnet_ext.bridge.training.start_model import refuse_other_start

    def model(tokens=7):
        return torch.nn.ModuleDict(
            {"encoder": torch.nn.Linear(3, 4), "decoder": torch.nn.Embedding(tokens, 4)}
        )

    def start(name, parts, **over):
        path = tmp_path / f"{name}.pth"
        torch.save(model(**over).state_dict(), path)
        return [Start(path, *parts)]

    decoder = ("decoder", "decoder")
    assert refuse_other_start(model(), start("same", decoder)) == []
    for starts, said in (
        (
            start("vocabulary", decoder, tokens=9),
            r"decoder is of .*weight has shape \(9, 4\), .*\(7, 4",
        ),
        (start("joint", ("joint", "decoder")), "joint.pth has no joint"),
        (start("target", ("decoder", "joint")), "the config makes no joint"),
        (start("encoder", ("encoder", "decoder")), "encoder is of .* makes"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            refuse_other_start(model(), starts)
        assert "\n" not in str(caught.value)
    assert refuse_other_start(model(), start("less", ("", "", ("decoder",)), tokens=9)) == []


def test_plain_layers_of_a_part_start_a_method(tmp_path):
    """As in a system that FOTAQ trains alone at 4 bits, from four layers of six."""
    import torch

    from espnet_ext.bridge.build import build_model
    from espnet_ext.bridge.training.start_model import refuse_other_start
    from espnet_ext.config.training import load_config

    conf = ROOT / "egs/fotaq/asr1/conf"
    plain = build_model(Experiment.of(load_config(conf / "train_conformer_xs.yaml")))
    torch.save(plain.state_dict(), tmp_path / "model.pth")
    config = load_config(conf / "nested/train_alone_xs_4l_4b.yaml")
    (entry,) = config.espnet["init_param"]
    assert entry.endswith("model.pth:::encoder.encoders.4.,encoder.encoders.5.")
    start = Start(tmp_path / "model.pth", exclude=("encoder.encoders.4.", "encoder.encoders.5."))
    refuse_other_start(build_model(Experiment.of(config)), [start])
    with pytest.raises(UserError, match=r"it holds encoder\.encoders\.4"):
        refuse_other_start(build_model(Experiment.of(config)), [Start(tmp_path / "model.pth")])

"""The average of epochs of a model with codes and masks."""

from argparse import Namespace

import torch
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train.reporter import Reporter

from espnet_ext.bridge.training.resume import keep_constants


def states():
    codes = torch.arange(200, 232, dtype=torch.uint8)
    masks = torch.tensor([True, False])
    return [
        {"weight": torch.full((3,), float(k)), "codes": codes, "kept": masks} for k in (1, 2, 6)
    ]


def test_codes_and_masks_are_those_of_the_checkpoints(tmp_path):
    reporter = Reporter()
    for epoch, state in enumerate(states(), 1):
        torch.save(state, tmp_path / f"{epoch}epoch.pth")
        reporter.set_epoch(epoch)
        with reporter.observe("valid") as sub:
            sub.register({"acc": float(epoch)})
            sub.next()
    (tmp_path / "latest.pth").symlink_to("3epoch.pth")
    options = Namespace(best_model_criterion=[("valid", "acc", "max")])
    average_nbest_models(
        output_dir=tmp_path,
        reporter=reporter,
        best_model_criterion=options.best_model_criterion,
        nbest=[1, 2, 3],
    )
    for count, weight in ((2, 4.0), (3, 3.0)):
        path = tmp_path / f"valid.acc.ave_{count}best.pth"
        assert torch.load(path)["codes"].tolist() != states()[0]["codes"].tolist()
        keep_constants(path)
        found = torch.load(path)
        assert torch.equal(found["codes"], states()[0]["codes"])
        assert found["kept"].tolist() == [True, False] and found["kept"].dtype == torch.bool
        assert found["weight"].tolist() == [weight] * 3
    best = tmp_path / "valid.acc.ave_1best.pth"
    keep_constants(best)
    assert best.is_symlink() and torch.equal(torch.load(best)["weight"], states()[2]["weight"])

"""The state of a training on disk: repaired after a kill, and read for records."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter

from espnet_ext.bridge.checkpoint import build, read_config, save
from espnet_ext.bridge.muted import muted
from espnet_ext.errors import UserError, one_line
from espnet_ext.formats.state_dict import compare_state, read_whole


def repair(exp: Path, options: Namespace) -> None:
    """Bring a killed run to the state after its last whole epoch.

    ESPnet writes checkpoint.pth first. After a kill at that moment these are missing: the epoch's
    model, without which the average fails, the links, and the removal of old models.

    Args:
        exp: folder of the run.
        options: of its training, as ``parse_options`` gives them.

    Raises:
        UserError: checkpoint.pth is damaged or of another architecture.
    """
    checkpoint = exp / "checkpoint.pth"
    if not checkpoint.exists():
        return
    state = load_training(checkpoint)
    try:
        with muted():
            compare_state(build(read_config(exp / "config.yaml")), state["model"], checkpoint)
    except UserError as error:
        raise UserError(f"{error}; remove {exp} to train again") from None
    reporter = Reporter()
    reporter.load_state_dict(state["reporter"])
    epoch = reporter.get_epoch()
    if not (exp / f"{epoch}epoch.pth").exists():
        save(state["model"], exp / f"{epoch}epoch.pth")
    _link(exp / "latest.pth", f"{epoch}epoch.pth")
    kept = {epoch}
    for phase, key, mode in options.best_model_criterion:
        if reporter.has(phase, key):
            best = reporter.get_best_epoch(phase, key, mode)
            _link(exp / f"{phase}.{key}.best.pth", f"{best}epoch.pth")
            kept.update(reporter.sort_epochs(phase, key, mode)[: max(options.keep_nbest_models)])
    for model in exp.glob("*epoch.pth"):
        number = model.name.removesuffix("epoch.pth")
        if number.isdecimal() and int(number) not in kept:
            model.unlink()


def keep_constants(average: Path) -> None:
    """Give an average the codes and masks of its checkpoints, which are the same in all of them.

    ESPnet's average adds up numbers of uint8, which overflow, and halves truth values.

    Args:
        average: the file of the average of several epochs; that of one is left as it is.
    """
    latest = average.parent / "latest.pth"
    if re.fullmatch(r"\d+epoch\.pth", average.resolve().name) or not latest.exists():
        return
    state = torch.load(latest, map_location="cpu", weights_only=True, mmap=True)
    constant = {k: v.clone() for k, v in state.items() if v.dtype in (torch.uint8, torch.bool)}
    if constant:
        found = torch.load(average, map_location="cpu", weights_only=True)
        save({**found, **constant}, average)


def save_untrained(model: torch.nn.Module, options: Any) -> None:
    """Write a model as the average of no epoch, under each name that an average may have.

    Args:
        model: to be saved.
        options: of ESPnet's trainer.
    """
    exp = Path(options.output_dir)
    save(model.state_dict(), exp / "0epoch.pth")
    for phase, key, _ in options.best_model_criterion:
        best = exp / f"{phase}.{key}.ave_1best.pth"
        _link(best, "0epoch.pth")
        _link(exp / f"{phase}.{key}.ave.pth", best.name)


def _link(path: Path, target: str) -> None:
    """Point ``path`` at ``target`` in the same folder."""
    if not path.is_symlink() or os.readlink(path) != target:
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def load_training(checkpoint: Path, advice: str = "") -> dict[str, Any]:
    """Read checkpoint.pth: model, reporter, optimizers, schedulers.

    Args:
        checkpoint: the file.
        advice: what to do if it is damaged; default: to train again.

    Raises:
        UserError: it is damaged.
    """
    advice = advice or f"remove {checkpoint.parent} to train again"
    try:
        state = read_whole(checkpoint)
    except Exception as error:  # torch raises many types for a damaged file
        raise UserError(f"{checkpoint} is damaged ({one_line(error)}); {advice}") from None
    if not isinstance(state, dict) or not {"model", "reporter"} <= state.keys():
        raise UserError(f"{checkpoint} is no checkpoint of a training; {advice}")
    return state


def history(exp: Path) -> tuple[int, float]:
    """Return the whole epochs of a run and the seconds of their training and validation."""
    if not (exp / "checkpoint.pth").exists():
        return 0, 0.0
    state = load_training(exp / "checkpoint.pth")
    epochs = state["reporter"]["stats"]
    phases = [phase for epoch in epochs.values() for phase in epoch.values()]
    return len(epochs), sum(phase["time"]["__timedelta_seconds__"] for phase in phases)


def averaged_epochs(exp: Path, options: Namespace, average: Path) -> dict[str, Any]:
    """Return the name of ``average`` and the epochs that ESPnet averaged, the best first.

    ESPnet averages the n best; of a training with fewer epochs than n it uses the best alone.
    """
    found = re.fullmatch(r"(\w+)\.(\w+)\.ave_(\d+)best\.pth", average.name)
    modes = {(phase, key): mode for phase, key, mode in options.best_model_criterion}
    if not found or (found[1], found[2]) not in modes:
        raise UserError(f"{average} is no average that ESPnet writes; remove it and run stage 4")
    if options.max_epoch == 0:
        return {"file": average.name, "epochs": [0]}
    reporter = Reporter()
    reporter.load_state_dict(load_training(exp / "checkpoint.pth")["reporter"])
    ranked = reporter.sort_epochs(found[1], found[2], modes[found[1], found[2]])
    return {"file": average.name, "epochs": ranked[: int(found[3])]}

"""Step one of a mimic: it learns the teacher's layers, without labels (arXiv 2409.16302).

exp/mimic/<name>/ holds mimic.safetensors (the weights of the least validation error), mimic.json
(settings and errors) and, while it trains, checkpoint.pth after every epoch, from which a killed
run goes on to the same result. The name says what it is, with a digest of all that decides it.
"""

import hashlib
import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

from espnet_ext.analysis.activations import Cached, Computed, Teacher, activations, batches
from espnet_ext.bridge.checkpoint import save
from espnet_ext.config.pretrained import pretrained_files
from espnet_ext.config.training import EXPERIMENTS
from espnet_ext.data.inputs import check_inputs
from espnet_ext.data.kaldi_dir import audio_inputs, audio_rows
from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.encoders.pretrained.mimicked import parse_mimic
from espnet_ext.encoders.pretrained.stack import Stack
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import atomic_path, content_key, lock, read_json, sha256_file, write_json
from espnet_ext.formats.digests import refuse_other
from espnet_ext.formats.state_dict import read_whole
from espnet_ext.methods.deploy import check_finite, parameter_count
from espnet_ext.methods.mimic import MimicNetwork, MimicOptions, mimic_loss

ROOT = EXPERIMENTS / "mimic"  # shared by the configs of a recipe
WEIGHTS = "mimic.safetensors"


class Job:
    """One step one: what it learns from and where it goes."""

    def __init__(self, experiment: Experiment):
        """Read what a config asks for.

        Raises:
            UserError: it has no step one, or the model or the data are not there.
        """
        step = experiment.recipe.mimic_training
        if step is None:
            raise UserError(
                f"{experiment.config.path}: no step one: give recipe: mimic (mimic: {{}} for its "
                "defaults)"
            )
        conf = experiment.config.conf("encoder")
        self.step = step
        self.options: MimicOptions = parse_mimic(conf.get("mimic"))
        self.seed = experiment.seed
        self.path = str(conf["path"])
        self.selected = {key: conf.get(key) for key in ("remove", "keep")}
        self.sets = experiment.sets
        folders = [experiment.set_folder(name) for name in self.sets]
        self.rows = [audio_rows(folder) for folder in folders]
        self.inputs = [(folder, folder / "wav.scp", experiment.rate) for folder in folders]
        self.model = {
            str(f): content_key(f) for f in pretrained_files(experiment.config, experiment.root)
        }
        self.audio = {str(f): content_key(f) for folder in folders for f in _deciding(folder)}

    @cached_property
    def sizes(self) -> list[list[int]]:
        """Frames of every utterance of the sets."""
        return [[soundfile.info(path).frames for _, path in rows] for rows in self.rows]

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, but for the model, whose digest is ``model``."""
        step = {k: v for k, v in vars(self.step).items() if k != "cache_gb"}
        return {
            "path": self.path,
            **self.selected,
            "options": vars(self.options),
            "step": step,
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        """Where the result is or will be."""
        key = json.dumps([self.settings, self.model, self.audio], sort_keys=True)
        options = self.options
        words = [Path(self.path).name, options.kind, f"z{options.width}", f"from{options.first}"]
        words += [] if options.split is None else [f"split{options.split}"]
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return ROOT / "-".join([*words, digest])

    def teacher(self) -> Stack:
        """The stack that is imitated."""
        return load_stack(self.path).select(**self.selected).requires_grad_(False)


def _deciding(folder: Path) -> list[Path]:
    """Files of a data directory that change when its audio does."""
    return [folder / "wav.scp", *audio_inputs(folder)]


def train_mimic(experiment: Experiment, device: str = "cpu") -> Path:
    """Train the mimics of a config on the teacher, unless that is done; return the weights' file.

    Raises:
        UserError: what ``Job`` raises, options that do not fit the model, or an error that is not
            finite.
    """
    job = Job(experiment)
    folder = job.folder
    # Trainings of a grid that differ in step two share step one.
    with lock(ROOT / f".{folder.name}.lock"):
        if (folder / WEIGHTS).is_file() and (folder / "mimic.json").is_file():
            _refuse_damaged(folder)
            print(f"mimic: {folder} is up to date")
            return folder / WEIGHTS
        _train(job, folder, torch.device(device))
    return folder / WEIGHTS


def _refuse_damaged(folder: Path) -> None:
    """Compare the weights with their digest; what an older version trained has none."""
    path = folder / "mimic.json"
    try:
        known = read_json(path).get("sha256")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged; remove {folder} to train step one again") from None
    if known is not None:
        refuse_other(folder / WEIGHTS, known, path.name, f"remove {folder} to train it again")


def _train(job: Job, folder: Path, device: torch.device) -> None:
    """Train and write the result."""
    for inputs in job.inputs:
        check_inputs(*inputs)
    stack = job.teacher().to(device)
    targets = job.options.targets(stack.num_layers)
    teacher = Teacher(stack, (job.options.first, *targets))
    key = [job.path, job.selected, job.model, job.audio]
    cache = ROOT / "activations"
    sets = [
        activations(teacher, rows, cache, key, job.step.cache_gb, name)
        for rows, name in zip(job.rows, job.sets, strict=True)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        network = MimicNetwork(stack.width, stack.num_layers, job.options).to(device)
        state = _epochs(job, network, sets, folder / "checkpoint.pth")
    network.load_state_dict(state["best"])
    check_finite(network)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, temporary)
    best = min(state["valid"])
    record = {
        **job.settings,
        "parameters": parameter_count([network]),
        "train": state["train"],
        "valid": state["valid"],
        "best_epoch": state["valid"].index(best) + 1,
        "seconds": round(state["seconds"], 1),
        "cached": [isinstance(found, Cached) for found in sets],
    }
    record["sha256"] = sha256_file(folder / WEIGHTS)
    write_json(folder / "mimic.json", record)
    (folder / "checkpoint.pth").unlink()
    print(f"mimic: {folder}: error {best:.5f} in epoch {record['best_epoch']}")


def _epochs(
    job: Job, network: nn.Module, sets: list[Computed | Cached], checkpoint: Path
) -> dict[str, Any]:
    """Train all epochs, after those of a killed run; return the state that the checkpoint holds."""
    optimizer = torch.optim.Adam(network.parameters(), lr=job.step.lr)
    state: dict[str, Any] = {"train": [], "valid": [], "seconds": 0.0, "best": {}}
    if checkpoint.is_file():
        state = _read(checkpoint)
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"mimic: continuing after epoch {len(state['train'])}")
    for epoch in range(len(state["train"]) + 1, job.step.epochs + 1):
        start = time.perf_counter()
        # Of the epoch, not of what came before it in this process: a killed run repeats it.
        torch.manual_seed(job.seed * 100_003 + epoch)
        errors = {}
        for part, found, sizes in zip(("train", "valid"), sets, job.sizes, strict=True):
            seed = job.seed * 100_003 + epoch if part == "train" else None
            groups = list(batches(sizes, job.step.batch_size, seed))
            errors[part] = _pass(network, found, groups, optimizer if seed is not None else None)
            if not errors[part] < float("inf"):
                raise UserError(
                    f"mimic: the error of epoch {epoch} is not finite; use a lower recipe: "
                    f"mimic: lr than {job.step.lr}"
                )
            state[part].append(errors[part])
        state["seconds"] += time.perf_counter() - start
        if errors["valid"] == min(state["valid"]):
            state["best"] = {k: v.detach().clone() for k, v in network.state_dict().items()}
        state |= {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
        save(state, checkpoint)
        print(
            f"mimic: epoch {epoch}/{job.step.epochs}: error {errors['train']:.5f}, "
            f"validation {errors['valid']:.5f}, {state['seconds']:.0f} s",
            flush=True,
        )
    return state


def _pass(
    network: nn.Module,
    found: Computed | Cached,
    groups: list[list[int]],
    optimizer: torch.optim.Optimizer | None,
) -> float:
    """Go over a set once; return its mean error over frames. Without optimizer nothing changes."""
    network.train(optimizer is not None)
    total, frames = 0.0, 0
    for indices in groups:
        (x, *targets), lengths = found.batch(indices)
        with torch.set_grad_enabled(optimizer is not None):
            loss = mimic_loss(network(x, lengths), targets, lengths)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.item() * int(lengths.sum())
        frames += int(lengths.sum())
    return total / frames


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        return read_whole(checkpoint)
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{checkpoint} is damaged ({reason}); remove it") from None

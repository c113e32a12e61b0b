"""Stage 4: statistics and training by ESPnet's trainer; a killed run continues."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.config.pretrained import read_starts, teacher_folder
from espnet_ext.config.processes import Processes, backend_of
from espnet_ext.config.schedule import schedule_warnings
from espnet_ext.config.training import training_settings
from espnet_ext.data.inputs import check_inputs
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.parts import Part
from espnet_ext.data.speed_perturb import holds_copies
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import (
    DONE,
    Stamp,
    content_key,
    in_use,
    refuse_changed_output,
    write_json,
    write_text,
)
from espnet_ext.stages.one_run import refuse_other_run
from espnet_ext.stages.statistics import ROLES, Statistics, set_options, split_options, target_of

_STAGES = {"wav.scp": 1, "feats.scp": 2, "tokens.txt": 3}  # that write these files
_WORKERS = 4  # that read data for a GPU, at most


@dataclass(frozen=True)
class TrainOptions:
    """Options of a call that are not in the config.

    Attributes:
        ngpu: GPUs of a node; 0: the CPU.
        threads: CPU threads of a process where there is no GPU.
        processes: over which the training is spread, one for each GPU.
        espnet: options for ESPnet's trainer, which win over the config.
    """

    ngpu: int = 0
    threads: int = 1
    processes: Processes = field(default_factory=Processes)
    espnet: Sequence[str] = ()

    @property
    def workers(self) -> int:
        """Processes that read data for each GPU, where the config names none."""
        cores = len(os.sched_getaffinity(0)) // self.processes.per_node
        return max(1, min(_WORKERS, cores))

    @property
    def device(self) -> str:
        """The device for records."""
        world = self.processes.world
        if world == 1:
            return f"{self.ngpu} GPU" if self.ngpu else "cpu"
        backend = backend_of(self.ngpu > 0)
        nodes = f" on {self.processes.nodes} nodes" if self.processes.nodes > 1 else ""
        return f"{world} {'GPUs' if self.ngpu else 'processes of cpu'}{nodes}, {backend}"


def train(experiment: Experiment, options: TrainOptions) -> None:
    """Collect statistics if they are missing, then train or continue a training.

    Writes exp/stats_<digest>/, shared by configs with the same features and tokens, and exp/<tag>/:
    ESPnet's config.yaml, checkpoints and train.log, calls.json and train.json.

    Raises:
        UserError: an earlier stage has not run, a wrong config, data or option, a run of other
            settings in the folder, or an error of ESPnet; a signal after which the state was saved.
    """
    if options.processes.nodes == 1:
        _train(experiment, options)
        return
    from espnet_ext.bridge.muted import muted
    from espnet_ext.bridge.training.launch import Nodes

    if options.processes.node == 0:
        with Nodes(options.processes) as nodes:
            _train(experiment, options, nodes)
        return
    with muted():
        from espnet_ext.stages.training_process import train_for_node_0
    train_for_node_0(options.processes)


def _train(experiment: Experiment, options: TrainOptions, nodes: Any = None) -> None:
    """Train on the first node, or the only one."""
    data = _data_options(experiment)
    files = experiment.training_files()
    settings = training_settings(experiment.config.as_dict())
    stamp = Stamp(
        experiment.train_stamp,
        {"config": settings, "espnet": list(options.espnet)},
        files,
    )
    if stamp.is_current():
        print(f"train: {experiment.folder} is up to date")
        return
    experiment = _checked(experiment, options)
    from espnet_ext.stages.training_process import log_to  # ESPnet is imported by now

    with in_use(experiment.folder):
        refuse_other_run(experiment, {str(file): content_key(file) for file in files})
        cpu_dtype = _use_threads(experiment, options)
        log_to(experiment.train_log)
        command = _common_options(experiment, options)
        statistics = Statistics(experiment, data, experiment.train_log)
        statistics.collect(command)
        command += _training_options(experiment, statistics)
        record = _run(experiment, options, command, cpu_dtype, nodes)
        stamp.write([experiment.averaged_model, experiment.espnet_config, record])
    print(f"train: averaged model is {experiment.averaged_model}")


def collect_part(experiment: Experiment, options: TrainOptions, part: Part) -> None:
    """Collect the statistics of a part of the training and of the development set.

    ``train`` joins the parts, which several machines may collect at the same time.

    Raises:
        UserError: an earlier stage has not run, a wrong config, data or option, more parts than
            utterances, or an error of ESPnet.
    """
    data = _data_options(experiment)
    experiment = _checked(experiment, options)
    from espnet_ext.stages.training_process import log_to  # ESPnet is imported by now

    log = experiment.folder / "log" / f"statistics.{part}.log"
    log_to(log)
    _use_threads(experiment, options)
    statistics = Statistics(experiment, data, log)
    path = statistics.part_folder(part) / "espnet.yaml"
    # Statistics need neither the mimic's weights nor a teacher.
    statistics.collect_part(_task_options(experiment, _espnet_options(experiment), path), part)


def _data_options(experiment: Experiment) -> dict[str, list[str]]:
    """ESPnet's data options by role.

    Raises:
        UserError: the output of an earlier stage is missing.
    """
    kind = "sound" if experiment.features is None else "kaldi_ark"
    for path in experiment.training_files():
        if path.name in _STAGES and not path.is_file():
            later = "dump" in path.parts or holds_copies(path.parent.name)
            stage = 2 if later else _STAGES[path.name]
            raise UserError(f"no {path}; run stage {stage}")
    return {
        role: [
            f"{experiment.audio_list(name)},speech,{kind}",
            f"{experiment.require_references(name)},{target_of(experiment)},text",
        ]
        for role, name in zip(ROLES, experiment.sets, strict=True)
    }


def _checked(experiment: Experiment, options: TrainOptions) -> Experiment:
    """Check what would stop the training later; nothing is written yet.

    Returns:
        The experiment, with ESPnet's options after -- in its config.

    Raises:
        UserError: a wrong config, data or option, or no GPU.
    """
    from espnet_ext.bridge.muted import muted

    with muted():
        import torch

        from espnet_ext.bridge.configs.check import checked_model, refuse_problems
        from espnet_ext.bridge.configs.espnet_options import refuse_reserved_options, with_options
        from espnet_ext.bridge.training.ctc_lengths import check_ctc_lengths
        from espnet_ext.bridge.training.start_model import refuse_other_start

        if options.espnet:  # before they are applied; what is left is checked with the model
            refuse_problems(experiment.config)
        refuse_reserved_options(options.espnet, options.ngpu, experiment.recipe.task)
        config = with_options(experiment.config, options.espnet)
        experiment = replace(experiment, config=config)
        model, warnings = checked_model(experiment)
        said = [f"warning: {line}" for line in warnings]
        said += refuse_other_start(model, read_starts(experiment.config, experiment.root))
    if options.ngpu > torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise UserError(f"--ngpu {options.ngpu}: torch sees {seen} GPU here; --ngpu 0 is the CPU")
    for line in said:
        print(f"train: {line}")
    for path in filter(None, (experiment.token_list, experiment.tokenizer)):
        refuse_changed_output(path, experiment.token_folder / DONE, "run stage 3 again")
    for name in experiment.sets:
        check_inputs(experiment.set_folder(name), experiment.audio_list(name), experiment.rate)
    check_ctc_lengths(experiment, model)
    heard = read_table(experiment.audio_list(experiment.sets[0]))
    for line in schedule_warnings(experiment.espnet, len(heard)):
        print(f"train: warning: {line}")
    return experiment


def _use_threads(experiment: Experiment, options: TrainOptions) -> Any:
    """Set torch's threads; return the type of forward passes on the CPU, None for the default."""
    import torch

    from espnet_ext.bridge.training.trainer import supported_cpu_dtype

    if options.ngpu:
        return None
    torch.set_num_threads(options.threads)
    dtype = supported_cpu_dtype(experiment.recipe.cpu_dtype)
    several = "" if options.processes.alone else f"{options.device}, "
    print(f"train: {several}{options.threads} threads, {dtype or 'float32'}")
    return dtype


def _common_options(experiment: Experiment, options: TrainOptions) -> list[str]:
    """Options of statistics and training; also writes exp/<tag>/espnet.yaml."""
    espnet = _espnet_options(experiment)
    if experiment.recipe.mimic is not None:
        from espnet_ext.analysis.mimic_training import train_mimic

        weights = train_mimic(experiment, "cuda" if options.ngpu else "cpu")
        mimic = {**espnet["encoder_conf"]["mimic"], "path": str(weights)}
        espnet["encoder_conf"] = {**espnet["encoder_conf"], "mimic": mimic}
    if (teacher := experiment.recipe.teacher) is not None:
        espnet["model_conf"] = {
            **(espnet.get("model_conf") or {}),
            "teacher": str(teacher_folder(experiment.root, teacher)),
            "teacher_weight": experiment.recipe.teacher_weight,
        }
    command = _task_options(experiment, espnet, experiment.espnet_options)
    command += ["--ngpu", str(min(options.ngpu, 1))]
    if options.ngpu and not espnet.get("num_workers"):
        command += ["--num_workers", str(options.workers)]
    return command


def _espnet_options(experiment: Experiment) -> dict[str, Any]:
    """The config's options of ESPnet, for features that stage 2 wrote without their frontend."""
    espnet = dict(experiment.espnet)
    if experiment.features is not None:
        espnet["input_size"] = experiment.features.width
        espnet.pop("frontend"), espnet.pop("frontend_conf", None)
    return espnet


def _task_options(experiment: Experiment, espnet: dict[str, Any], path: Path) -> list[str]:
    """ESPnet's command: a config that is written to ``path``, and tokens."""
    write_text(path, yaml.safe_dump(espnet, sort_keys=False))
    command = ["--config", str(path), "--token_list", str(experiment.token_list)]
    if experiment.tokenizer is not None:
        command += ["--bpemodel", str(experiment.tokenizer)]
    return command


def _training_options(experiment: Experiment, statistics: Statistics) -> list[str]:
    """Options of the training proper."""
    options = ["--output_dir", str(experiment.folder), "--resume", "true"]
    splits = experiment.recipe.splits
    for role in ROLES:
        if role == "train" and splits > 1:
            options += split_options(statistics, splits)
        else:
            options += set_options(role, statistics.data[role], statistics.shapes(role))
    if experiment.normalises:
        options += ["--normalize_conf", f"stats_file={statistics.folder}/train/feats_stats.npz"]
    options += ["--keep_nbest_models", str(experiment.recipe.average)]
    return options


def _run(
    experiment: Experiment, options: TrainOptions, command: list[str], cpu_dtype: Any, nodes: Any
) -> Path:
    """Train, and write train.json; return its path."""
    from espnet_ext.bridge.configs.espnet_options import parse_options
    from espnet_ext.bridge.training import resume, step_checkpoint, trainer
    from espnet_ext.bridge.training.run_record import Calls
    from espnet_ext.results.schema import NOT_MEASURED
    from espnet_ext.stages.training_process import Job, train_in_processes

    folder, task = experiment.folder, experiment.recipe.task
    espnet = parse_options(command, task)
    resume.repair(folder, espnet)
    before = resume.history(folder)[0]
    calls = Calls(
        experiment.calls,
        new_run=before == 0 and not (folder / step_checkpoint.FILE).exists(),
        command=shlex.join(["espnet-ext", *sys.argv[1:]]),
        threads=options.threads if options.ngpu == 0 else NOT_MEASURED,
        device=options.device,
        dtype=trainer.dtype_of(espnet, cpu_dtype),
    )
    job = Job(
        command=tuple(command),
        log=experiment.train_log,
        task=task,
        cpu_dtype=str(cpu_dtype).removeprefix("torch.") if cpu_dtype else "",
        threads=options.threads,
        minutes=experiment.recipe.checkpoint_minutes,
        workers=espnet.num_workers,
        gpu=options.ngpu > 0,
        sync_batchnorm=experiment.recipe.sync_batchnorm,
        calls=calls,
    )
    train_in_processes(job, options.processes, nodes)
    resume.keep_constants(experiment.averaged_model)
    epochs, seconds = resume.history(folder)
    for epoch in set(range(before + 1, epochs + 1)) - set(calls.current["epochs"]):
        calls.add(epoch, measured=False)  # by processes that ESPnet started
    made = experiment.train_record
    # A run from before calls were kept has its record.
    if calls.path.exists() or not made.exists():
        average = experiment.averaged_model
        record = {
            "seconds": round(seconds, 1),
            "epochs": epochs,
            "seed": espnet.seed,
            "average": resume.averaged_epochs(folder, espnet, average),
            **calls.summary(epochs),
            "config": experiment.config.as_dict(),
        }
        write_json(made, record)
    return made

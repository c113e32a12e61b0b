"""One run as a validated result, collected from the files of its stages."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import espnet_ext
from espnet_ext.config.training import READ_LATER, UNTRAINED, Config, Recipe
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import (
    DECODED,
    DEPLOYED,
    DONE,
    read_json,
    refuse_changed_output,
    score_stamp,
    sha256_file,
)
from espnet_ext.results.schema import (
    NOT_MEASURED,
    SCHEMA_VERSION,
    Decoding,
    Result,
    ScoreFile,
    Training,
    as_json,
)
from espnet_ext.validation import parse

# A result without these is not reported; everything else may be "not measured".
_REQUIRED = ("command", "commit", "versions", "machine", "config")


def repository_root(start: Path) -> Path | None:
    """Return the nearest folder at or above ``start`` that has ``egs/`` in it, or None."""
    start = start.resolve()
    return next((f for f in (start, *start.parents) if (f / "egs").is_dir()), None)


def package_root() -> Path | None:
    """Return the repository that this package is installed from, or None if it is a copy."""
    root = Path(espnet_ext.__file__).resolve().parents[1]
    return root if (root / "egs").is_dir() else None


def recipe_names(recipe: Path) -> tuple[str, str]:
    """Return (dataset, task) of a recipe folder ``egs/<dataset>/<task>``."""
    recipe = recipe.resolve()
    return recipe.parent.name, recipe.name


def stage_files(experiment: Experiment) -> list[Path]:
    """Return every existing file that ``collect`` reads, for the stamp."""
    return [
        experiment.train_record,
        experiment.deployed / DEPLOYED,
        *sorted(experiment.decode_folder.rglob(DECODED)),
        *sorted(experiment.score_folder.rglob("*.json")),
    ]


def refuse_other_inputs(experiment: Experiment) -> None:
    """Refuse to join files of different runs: a new model, other options, texts written since.

    Raises:
        UserError: a stage has not run since; says which.
    """
    _read_deploy(experiment)
    model = _digest(experiment.weights, "stage 5 (espnet-ext deploy)")
    for method, options in experiment.recipe.decode.items():
        for name, path in _score_files(experiment, method):
            decoded = experiment.decoded(method, name)
            again = f"run stages 6 and 7 with --sets {name}, or remove {path}"
            log = _read_decode(decoded)
            if log.get("model") != model:
                raise UserError(f"{decoded} was decoded with another model; {again}")
            if log.get("options") != (options or {}):
                raise UserError(f"{decoded} was decoded with other options; {again}")
            inputs = _read_score(path).inputs
            hypothesis = decoded / "text"
            _digest(hypothesis, f"stages 6 and 7 with --sets {name}")
            if str(hypothesis) not in inputs:
                raise UserError(f"{path} is no score of {hypothesis}; {again}")
            for file, content in inputs.items():
                # A file that was removed, of a baseline, cannot have changed the score.
                if Path(file).is_file() and sha256_file(file) != content:
                    again = f"run stage 7 with --sets {name}, or remove it"
                    raise UserError(f"{path} was made before {file} changed; {again}")


def _score_files(experiment: Experiment, method: str) -> list[tuple[str, Path]]:
    """The scores of a method, with the names of their sets; those of folds have slashes."""
    folder = experiment.score_folder / method
    found = sorted(folder.rglob("*.json"))
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in found]


def _digest(path: Path, stage: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise UserError(f"no {path}; run {stage}") from None


def collect(experiment: Experiment, recipe: Path) -> Result:
    """Return the result of a run.

    Args:
        experiment: the run; its paths are relative to the recipe's folder, the working folder.
        recipe: the recipe's folder; names the dataset and the task.

    Raises:
        UserError: a stage has not run (it says which), or a file does not fit.
    """
    config = experiment.config
    train = _read(experiment.train_record, "4 (espnet-ext train)", experiment.train_stamp)
    for key in _REQUIRED:
        if not train.get(key):
            raise UserError(
                f"{experiment.train_record}: missing key {key}; a result is not reported "
                "without it: run stage 4 again (it keeps finished epochs)"
            )
    deploy = _read_deploy(experiment)
    decoding, scores = _decoded_and_scored(experiment)
    dataset, task = recipe_names(recipe)
    # The model as it was before has not been trained here.
    trained: dict[str, Any] = {} if experiment.variant == UNTRAINED else train
    training = [name for name in Training.model_fields if name != "parameters"]
    result = {
        "schema_version": SCHEMA_VERSION,
        "command": _without_program_folder(train["command"]),
        "versions": train["versions"],
        "machine": train["machine"],
        "dataset": dataset,
        "task": task,
        "commit": train["commit"],
        "tag": config.tag,
        "variant": experiment.variant,
        "checkpoint": _checkpoint(deploy),
        "encoder": str(train["config"].get("encoder", "ESPnet's default")),
        "config_path": str(config.path),
        "seed": _measured(train, "seed"),
        "parameters": _measured(deploy, "parameters"),
        "bytes": _measured(deploy, "bytes"),
        "macs_per_second": _measured(deploy, "macs_per_second"),
        "training": {
            **{key: _measured(trained, key) for key in training},
            "parameters": _measured(deploy, "training_parameters"),
        },
        "decoding": decoding,
        "scores": scores,
        "config": _with_later_keys(train["config"], config),
    }
    # A committed file must not depend on where this clone or this user's home is.
    root = repository_root(recipe)
    prefixes = {} if root is None else {f"{root}/": ""}
    result = _portable(result, prefixes | {f"{Path.home()}/": "~/"})
    return parse(Result, result, f"result of {config.tag}")


def _checkpoint(deploy: Mapping[str, Any]) -> Any:
    found = _measured(deploy, "checkpoint")
    return Path(found).name if isinstance(found, str) else found  # else the schema names it


def _with_later_keys(trained: Any, config: Config) -> Any:
    """The config that was trained, with the keys of ``recipe:`` that later stages read.

    Keys of older versions are left out.
    """
    recipe = trained.get("recipe") if isinstance(trained, dict) else None
    if not isinstance(recipe, dict):
        return trained  # the schema names what is wrong
    known, now = {item.name for item in fields(Recipe)}, config.as_dict()["recipe"]
    before = {key: value for key, value in recipe.items() if key in known}
    return {**trained, "recipe": before | {key: now[key] for key in READ_LATER if key in now}}


def _decoded_and_scored(
    experiment: Experiment,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    decoding, scores = [], []
    measured = [name for name in Decoding.model_fields if name not in ("method", "set")]
    for method in experiment.recipe.decode:
        files = _score_files(experiment, method)
        if not files:
            folder = experiment.score_folder / method
            raise UserError(f"no scores in {folder}; run stage 7 (espnet-ext score) first")
        for name, path in files:
            scores.append(as_json(_read_score(path).score))
            log = _read_decode(experiment.decoded(method, name))
            values = {key: _measured(log, key) for key in measured}
            decoding.append({"method": method, "set": name, **values})
    return decoding, scores


def _measured(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    return NOT_MEASURED if value is None or value == {} else value


def _read_deploy(experiment: Experiment) -> dict[str, Any]:
    record = experiment.deployed / DEPLOYED
    return _read(record, "5 (espnet-ext deploy)", experiment.deploy_stamp)


def _read_decode(folder: Path) -> dict[str, Any]:
    return _read(folder / DECODED, "6 (espnet-ext decode)", folder / DONE)


def _read_score(path: Path) -> ScoreFile:
    value = _read(path, "7 (espnet-ext score)", score_stamp(path))
    return parse(ScoreFile, value, path, "run stage 7 again (espnet-ext score)")


def _read(path: Path, stage: str, stamp: Path) -> dict[str, Any]:
    """Read a record of a stage, which is as its stamp says."""
    refuse_changed_output(path, stamp, f"run stage {stage} again")
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {path}; run stage {stage} first") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON; remove it and run stage {stage}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values; remove it and run stage {stage}")
    return value


def _without_program_folder(command: Any) -> Any:
    if not isinstance(command, str):
        return command  # the schema names it
    program, _, rest = command.partition(" ")
    return f"{Path(program).name} {rest}".strip()


def _portable(value: Any, prefixes: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _portable(item, prefixes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item, prefixes) for item in value]
    if isinstance(value, str):
        for prefix, short in prefixes.items():
            value = value.replace(prefix, short)
    return value

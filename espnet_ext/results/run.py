"""One run as one validated mapping, collected from what its stages wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import espnet_ext
from espnet_ext.config.training import READ_LATER, Config
from espnet_ext.errors import UserError
from espnet_ext.files import read_json, sha256_file, weights_file
from espnet_ext.results.schema import (
    NOT_MEASURED,
    RESULT,
    SCHEMA_VERSION,
    any_score_file,
    read_validated,
    validate,
)

_TRAINING = ("seconds", "epochs", "peak_rss_mb", "device", "threads", "dtype", "average")
_DECODING = (
    "rtf",
    "rtf_rounds",
    "rtf_utterances",
    "audio_seconds",
    "utterances",
    "peak_rss_mb",
    "threads",
    "device",
)
# A row of results without these does not exist; everything else may be "not measured".
_RECORD = ("command", "commit", "versions", "machine", "config")


def repository_root(start: Path) -> Path | None:
    """Return the nearest folder at or above ``start`` that has ``egs/`` in it, or None."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "egs").is_dir():
            return folder
    return None


def publishing_root() -> Path:
    """Return the repository that the recipe in the working folder publishes into.

    Raises:
        UserError: it is in none.
    """
    root = repository_root(Path.cwd())
    if root is None:
        raise UserError("this recipe is in no repository (no folder egs/ above)")
    return root


def package_root() -> Path | None:
    """Return the repository that this package is installed from, or None if it is a copy."""
    root = Path(espnet_ext.__file__).resolve().parents[1]
    return root if (root / "egs").is_dir() else None


def recipe_names(recipe: Path) -> tuple[str, str]:
    """Return (dataset, task) of a recipe folder ``egs/<dataset>/<task>``."""
    recipe = recipe.resolve()
    return recipe.parent.name, recipe.name


def stage_files(config: Config, variant: str) -> list[Path]:
    """Return every file that ``collect`` reads, as far as they are there; for the stamp."""
    return [
        config.exp / "train.json",
        config.exp / "deploy" / variant / "deploy.json",
        *sorted((config.exp / "decode" / variant).glob("*/*/decode.json")),
        *sorted((config.exp / "score" / variant).glob("*/*.json")),
    ]


def refuse_other_inputs(config: Config, variant: str) -> None:
    """Refuse to join files of different runs: a new model, other options, texts written since.

    Raises:
        UserError: a stage has not run since; says which.
    """
    folder = config.exp / "deploy" / variant
    _read(folder / "deploy.json", "5 (espnet-ext deploy)")
    model = _digest(weights_file(folder), "stage 5 (espnet-ext deploy)")
    for method, options in config.recipe.decode.items():
        for path in sorted((config.exp / "score" / variant / method).glob("*.json")):
            decoded = config.exp / "decode" / variant / method / path.stem
            again = f"run stages 6 and 7 with --sets {path.stem}, or remove {path}"
            log = _read(decoded / "decode.json", "6 (espnet-ext decode)")
            if log.get("model") != model:
                raise UserError(f"{decoded} was decoded with another model; {again}")
            if log.get("options") != (options or {}):
                raise UserError(f"{decoded} was decoded with other options; {again}")
            score = _read(path, "7 (espnet-ext score)")
            validate(score, any_score_file, str(path))
            hypothesis = decoded / "text"
            _digest(hypothesis, f"stages 6 and 7 with --sets {path.stem}")
            if str(hypothesis) not in score["inputs"]:
                raise UserError(f"{path} is no score of {hypothesis}; {again}")
            for name, content in score["inputs"].items():
                # What is gone, a baseline that was removed, cannot have changed the score.
                if Path(name).is_file() and sha256_file(name) != content:
                    again = f"run stage 7 with --sets {path.stem}, or remove it"
                    raise UserError(f"{path} was made before {name} changed; {again}")


def _digest(path: Path, stage: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise UserError(f"no {path}; run {stage}") from None


def collect(config: Config, variant: str, recipe: Path) -> dict[str, Any]:
    """Return the result of a run, validated.

    Args:
        config: the run's config; paths are relative to the recipe folder, the current one.
        variant: the deployed form that was decoded.
        recipe: the recipe folder; names the dataset and the task.

    Raises:
        UserError: a stage has not run (it says which), or a file does not fit.
    """
    train = _read(config.exp / "train.json", "4 (espnet-ext train)")
    for key in _RECORD:
        if not train.get(key):
            raise UserError(
                f"{config.exp / 'train.json'}: missing key {key}; a result is not reported "
                "without it: run stage 4 again (it keeps finished epochs)"
            )
    deploy = _read(config.exp / "deploy" / variant / "deploy.json", "5 (espnet-ext deploy)")
    decoding, scores = _decoded_and_scored(config, variant)
    dataset, task = recipe_names(recipe)
    result = {
        "schema": SCHEMA_VERSION,
        "dataset": dataset,
        "task": task,
        "tag": config.tag,
        "variant": variant,
        "checkpoint": _checkpoint(deploy),
        "encoder": str(train["config"].get("encoder", "ESPnet's default")),
        "config_path": str(config.path),
        "command": _without_program_folder(train["command"]),
        "commit": train["commit"],
        "seed": _measured(train, "seed"),
        "versions": train["versions"],
        "machine": train["machine"],
        "parameters": _measured(deploy, "parameters"),
        "bytes": _measured(deploy, "bytes"),
        "macs_per_second": _measured(deploy, "macs_per_second"),
        "training": {
            **{key: _measured(train, key) for key in _TRAINING},
            "parameters": _measured(deploy, "training_parameters"),
        },
        "decoding": decoding,
        "scores": scores,
        "config": _as_run(train["config"], config),
    }
    # A committed file must not depend on where this clone or this user's home lies.
    root = repository_root(recipe)
    prefixes = {} if root is None else {f"{root}/": ""}
    result = _portable(result, prefixes | {f"{Path.home()}/": "~/"})
    validate(result, RESULT, f"result of {config.tag}")
    return result


def _checkpoint(deploy: Mapping[str, Any]) -> Any:
    found = _measured(deploy, "checkpoint")
    return Path(found).name if isinstance(found, str) else found  # else the schema names it


def _as_run(trained: Any, config: Config) -> Any:
    """The config that was trained, with what later stages read as they read it now."""
    recipe = trained.get("recipe") if isinstance(trained, dict) else None
    if not isinstance(recipe, dict):
        return trained  # the schema names what is wrong
    now = config.as_dict()["recipe"]
    return {**trained, "recipe": {**recipe, **{key: now[key] for key in READ_LATER}}}


def _decoded_and_scored(
    config: Config, variant: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    decoding, scores = [], []
    for method in config.recipe.decode:
        folder = config.exp / "score" / variant / method
        files = sorted(folder.glob("*.json"))
        if not files:
            raise UserError(f"no scores in {folder}; run stage 7 (espnet-ext score) first")
        for path in files:
            score = _read(path, "7 (espnet-ext score)")
            validate(score, any_score_file, str(path))
            del score["inputs"]  # a check of this machine's files
            log = _read(
                config.exp / "decode" / variant / method / path.stem / "decode.json",
                "6 (espnet-ext decode)",
            )
            decoding.append({"method": method, "set": path.stem, **_pick(log)})
            scores.append(score)
    return decoding, scores


def _pick(log: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _measured(log, key) for key in _DECODING}


def _measured(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    return NOT_MEASURED if value is None or value == {} else value


def _read(path: Path, stage: str) -> dict[str, Any]:
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


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read and validate ``<folder>/<dataset>_<task>/*.json``, in the order of their names.

    Raises:
        UserError: a file is not JSON or does not fit the schema, or lies in a folder or under
            a name that is not its own.
    """
    results = []
    for path in sorted(folder.glob("*/*.json")):
        result = read_validated(path, RESULT, "publish that run again")
        if path != published_path(folder, result):
            raise UserError(f"{path}: holds the run of {published_path(folder, result)}; move it")
        results.append(result)
    return results


def published_path(folder: Path, result: Mapping[str, Any]) -> Path:
    """Return where a result is committed: one file per run and, but for `merged`, variant."""
    return folder / corpus_name(result) / f"{run_name(result)}.json"


def corpus_name(result: Mapping[str, Any]) -> str:
    """Return the folder of the results of a recipe."""
    return f"{result['dataset']}_{result['task']}"


def is_average(result: Mapping[str, Any]) -> bool:
    """False if a checkpoint was deployed that is known not to be the training's average."""
    average = result["training"]["average"]
    if NOT_MEASURED in (average, result["checkpoint"]):
        return True
    return bool(result["checkpoint"] == average["file"])


def run_name(result: Mapping[str, Any]) -> str:
    """Return the tag, and the variant where it is not the usual one."""
    variant = result["variant"]
    return result["tag"] if variant == "merged" else f"{result['tag']}_{variant}"

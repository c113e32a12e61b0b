"""Layers of stacks, examined: their similarity, the curves of their removal, smaller models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from espnet_ext.analysis.measure import Measure, Removal
from espnet_ext.bridge.muted import muted
from espnet_ext.config.pretrained import deployed_folder
from espnet_ext.config.training import EXPERIMENTS
from espnet_ext.data.kaldi_dir import audio_rows, data_sets, read_table
from espnet_ext.data.segments import set_folder
from espnet_ext.errors import UserError, check_name, nearest
from espnet_ext.experiment import DATA, Experiment
from espnet_ext.files import sha256_file, write_json
from espnet_ext.results.environment import environment
from espnet_ext.results.plots.stacks import plot_stack
from espnet_ext.results.run import recipe_names
from espnet_ext.results.schema import SCHEMA_VERSION, as_json
from espnet_ext.results.stacks import BLOCK_RULE, MEASURES, Pruning, Similarity
from espnet_ext.results.store import folder_of
from espnet_ext.validation import parse


def audio_of_set(name: str) -> list[tuple[str, str]]:
    """The (utterance, audio path) of a set in data/.

    Raises:
        UserError: no such set.
    """
    if not (DATA / name / "wav.scp").is_file():
        known = nearest(name, data_sets(DATA))
        raise UserError(f"no data/{name}/wav.scp: no set {known} (stage 1 makes the sets)")
    return audio_rows(set_folder(DATA, name))


def similarity(
    model: str | Experiment,
    set_name: str,
    measure: Measure,
    blocks: int,
    name: str | None = None,
    part: str = "encoder",
) -> Similarity:
    """Compare the layers of one model.

    Args:
        model: folder of a model, exp/<tag>, or hub:NAME; or an experiment with a recogniser.
        set_name: data set.
        measure: how, as ``Measure.for_set`` made it for this set.
        blocks: of layers, to look for.
        name: of the result; default: from model, set and part.
        part: of ``measure.PARTS``; a decoder, of an experiment alone, reads the set's texts.

    Raises:
        UserError: no such model or set, or a model without that part.
    """
    rows = audio_of_set(set_name)
    with muted():
        from espnet_ext.analysis.layers import compare_layers, draw_batches, stack_outputs
        from espnet_ext.analysis.similarity import boundary
        from espnet_ext.encoders.pretrained.load import load_stack

    if isinstance(model, Experiment):
        tag = model.config.tag
    else:
        tag = Path(model.removeprefix("hub:")).name
    about = _made_here(name or _name(tag, set_name, part))  # refuses a wrong name at once
    if isinstance(model, Experiment):
        path, (stack, outputs) = str(model.deployed), _layers_of(model, set_name, part)
        asked = f"{model.config.path} --part {part} --variant {model.variant}"
    else:
        path, asked = model, model
        with muted():
            stack = load_stack(model)
        outputs = stack_outputs(stack)
    found = compare_layers(outputs, draw_batches(rows, measure), measure)
    matrices = {"cosine": found.cosine, "cka": found.cka, "knn": found.mean_knn()}
    boundaries = {key: boundary(matrices[key], blocks) for key in MEASURES}
    made = {
        **about,
        "model": _description(path, stack),
        **measure.record(),
        "set": set_name,
        "utterances": found.utterances,
        "batches": found.batches,
        **{key: matrix.tolist() for key, matrix in matrices.items()},
        "knn_by_k": {str(k): matrix.tolist() for k, matrix in found.knn.items()},
        "rule": BLOCK_RULE,
        "blocks": {
            key: {"first_layers": cuts or None, "contrast": contrast}
            for key, (cuts, contrast) in boundaries.items()
        },
        "command": f"espnet-ext similarity {asked} --set {set_name} {measure.words()}",
    }
    return parse(Similarity, made, "similarity")


def _layers_of(experiment: Experiment, set_name: str, part: str) -> tuple[Any, Any]:
    """The layers of a part of a deployed recogniser, and what computes their outputs."""
    with muted():
        from espnet_ext.analysis.layers import layers_of, load_recogniser

        recogniser = load_recogniser(experiment.require_deployed(), *_decoding(experiment), part)
    return layers_of(recogniser, part, _read_texts(experiment, set_name, part))


def _read_texts(experiment: Experiment, set_name: str, part: str) -> dict[str, str]:
    """The texts of a set that a decoder reads; an encoder reads none."""
    return read_table(experiment.require_references(set_name)) if part == "decoder" else {}


def _decoding(experiment: Experiment) -> tuple[str, dict[str, Any]]:
    """The first method of decoding, with its options.

    Raises:
        UserError: the config has none.
    """
    for method, options in experiment.recipe.decode.items():
        return method, options or {}
    raise UserError(f"{experiment.config.path}: no method in recipe: decode")


def _name(tag: str, set_name: str, part: str) -> str:
    """Name of a result."""
    return f"{tag}_{set_name}" if part == "encoder" else f"{tag}_{set_name}_{part}"


def pruning_curves(
    experiment: Experiment,
    tags: Sequence[str],
    sets: tuple[str, str],
    measure: Measure,
    removal: Removal,
    name: str | None = None,
) -> Pruning:
    """Curves of the score of models as layers are removed without retraining.

    Args:
        experiment: a probe, or a recogniser; what it says of task and variant holds for all.
        tags: the probes, which differ in the seed; empty: ``experiment`` alone.
        sets: the set that layers are scored on, and the one that the probes are scored on.
        measure: how layers are compared, as ``Measure.for_set`` made it for the first set.
        removal: how they are removed.
        name: of the result; default: from the first tag and the second set.

    Raises:
        UserError: a translator, a model that is not deployed, a set or a metric that does not
            suit, a part that the model lacks, or a protected layer that is none.
    """
    config, (score_set, test_set) = experiment.config, sets
    task = experiment.recipe.task
    if task == "st":
        raise UserError(f"{config.path}: prune scores classifiers and recognisers, not task {task}")
    if task == "cls" and removal.part == "decoder":
        raise UserError(f"{config.path}: a classifier has no decoder; leave out --part decoder")
    if (removal.metric == "wer") != (task == "asr"):
        fitting = "wer" if task == "asr" else "accuracy or weighted_f1"
        raise UserError(f"--metric {removal.metric} does not fit task {task}: choose {fitting}")
    chosen = list(tags) or [config.tag]
    about = _made_here(name or _name(chosen[0], test_set, removal.part))
    score_rows, rows = audio_of_set(score_set), audio_of_set(test_set)
    with muted():
        from espnet_ext.analysis.pruning import Curves, prune_probe, prune_recogniser
        from espnet_ext.analysis.pruning_scores import ClassJudge, Judge, WordJudge
    names = [utterance for utterance, _ in rows]
    judge: Judge
    if task == "asr":
        texts = read_table(experiment.require_references(test_set))
        judge = WordJudge([texts.get(name, "") for name in names])
    else:
        judge = ClassJudge(_classes(test_set, names), removal.metric)
    curves = Curves(judge, removal, measure.seed)
    read = _read_texts(experiment, score_set, removal.part)
    model: dict[str, Any] = {}
    for tag in chosen:
        folder = Experiment.of(replace(config, tag=tag), experiment.variant).deployed
        stack: Any
        if task == "asr":
            parts = folder, _decoding(experiment), score_rows, read, rows
            stack, protected = prune_recogniser(*parts, curves, measure)
        else:
            stack, protected = prune_probe(folder, score_rows, rows, curves, measure)
        weights = folder if removal.part == "decoder" else folder / "stack"
        model = model or _description(str(weights), stack) | {"path": f"exp/{chosen[0]}"}
    words = f"--score_set {score_set} --set {test_set} --metric {removal.metric}"
    words += f" --repeats {removal.repeats} {measure.words()}"
    words += f" --part {removal.part}" if removal.part != "encoder" else ""
    words += f" --tags {' '.join(tags)}" if tags else ""
    words += f" --name {name}" if name else ""
    made = {
        **about,
        "model": model,
        **measure.record(),
        "probes": chosen,
        "metric": removal.metric,
        "score_set": score_set,
        "set": test_set,
        **curves.summary(),
        "command": f"espnet-ext prune {config.path} {words}",
        "protected": sorted(protected),
    }
    return parse(Pruning, made, "pruning")


def save_without(model: str, removed: Sequence[int], out: Path) -> str:
    """Write a model without some layers in the same format; return a line about it.

    Raises:
        UserError: no such model or layer.
    """
    with muted():
        from espnet_ext.encoders.pretrained.load import load_stack

        smaller = load_stack(model).remove(removed)
        smaller.save(out)
        again = load_stack(out)
    return (
        f"{out}: {again.family}, {again.num_layers} layers left of the model's: "
        f"{', '.join(map(str, smaller.kept))}; {sum(p.numel() for p in again.parameters()):,} "
        "parameters"
    )


def write(record: Similarity | Pruning) -> list[Path]:
    """Write a record and its drawing below exp/; return their paths."""
    output = EXPERIMENTS / folder_of(record) / f"{record.name}.json"
    write_json(output, as_json(record))
    plot_stack(record, output.with_suffix(".png"))
    return [output, output.with_suffix(".png")]


def _made_here(name: str) -> dict[str, Any]:
    """Whose record it is, its name for files, and where it was made."""
    check_name(name, "the result's name")
    dataset, task = recipe_names(Path.cwd())
    made = {"schema_version": SCHEMA_VERSION, "dataset": dataset, "task": task, "name": name}
    return made | environment()


def _description(path: str, stack: Any) -> dict[str, Any]:
    """A model as the record names it; its hash is of its file of weights."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files and (folder := deployed_folder(Path(path), "model.pth")) is not None:
        files = [folder / "model.pth"]
    return {
        "path": path,
        "family": stack.family,
        "layers": stack.num_layers,
        "width": stack.width,
        "sha256": sha256_file(files[0]) if files else "not measured",
    }


def _classes(name: str, utterances: Sequence[str]) -> list[str]:
    """The class of each utterance of a set that has two classes or more."""
    labels = read_table(DATA / name / "label")
    for utterance in utterances:
        if utterance not in labels:
            raise UserError(f"data/{name}/label: no class for {utterance}; run stage 1")
    found = [labels[utterance] for utterance in utterances]
    if len(set(found)) < 2:
        raise UserError(
            f"data/{name}/label: all {len(found)} utterances are of the class {found[0]}; a curve "
            "of accuracy needs a set with two classes or more"
        )
    return found

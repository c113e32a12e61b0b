"""Stage 8: collect a run into one validated result, draw it, and find its baseline's."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, in_use, read_json, read_utf8, write_json, write_text
from espnet_ext.results.pages.card import licence_file, model_card, score_list
from espnet_ext.results.pages.families import best_for_size
from espnet_ext.results.pages.scores import run_table, size_line
from espnet_ext.results.pages.text import Table
from espnet_ext.results.plots.grids import plot_confusions
from espnet_ext.results.plots.sizes import plot_sizes
from espnet_ext.results.plots.training import plot_training, read_curves, training_logs
from espnet_ext.results.run import collect, refuse_other_inputs, stage_files
from espnet_ext.results.schema import SCHEMA_VERSION, ClassScore, Result, as_json
from espnet_ext.results.store import baseline_of, read_results
from espnet_ext.run_files import CARD, LICENCE, SCORES, results_of
from espnet_ext.stages.deploy import deploy_stamp, deployed_checkpoint
from espnet_ext.stages.score import named_run
from espnet_ext.validation import parse


@dataclass(frozen=True)
class Report:
    """A run for the terminal.

    Attributes:
        result: the run.
        messages: what was written.
        table: the run and its baseline.
        lines: size, comparisons and, of a classifier, its tables.
    """

    result: Result
    messages: list[str]
    table: Table
    lines: list[str]


def report(experiment: Experiment, results: Path | None) -> Report:
    """Collect a run, write exp/<tag>/result.json, draw its plots, and compare it.

    Args:
        experiment: the run; the working folder is its recipe's.
        results: folder of the committed results, if there is one.

    Raises:
        UserError: a stage has not run, or files are of different runs.
    """
    refuse_other_inputs(experiment)
    _refuse_other_training(experiment)
    with in_use(experiment.folder):
        return _report(experiment, results)


def _report(experiment: Experiment, results: Path | None) -> Report:
    result, messages = _collected(experiment)
    messages += _write_card(experiment, result)
    committed = [] if results is None else list(read_results(results).runs.values())
    recipe = [run for run in committed if run.recipe == result.recipe and run != result]
    baselines = _baselines(experiment, result, recipe)
    messages += _draw(experiment, result, baselines.values(), recipe)
    lines = [size_line(result)]
    for score in result.scores:
        lines += [f"{score.set}, {score.method}: {f.sentence()}" for f in score.comparisons]
    return Report(result, messages, run_table(result, baselines), lines)


def _write_card(experiment: Experiment, result: Result) -> list[str]:
    """Write card, licence and scores into the deployed folder, if they are new; say so."""
    written = []
    readme = experiment.root / "README.md"
    languages = _paragraph(readme, "Language of the speech.", "Languages of the speech.")
    licence = _paragraph(readme, "Licence.", "Licence of the data.")
    files = {
        CARD: model_card(result, languages, licence),
        LICENCE: licence_file(result, licence),
        SCORES: json.dumps(score_list(result), indent=2) + "\n",
    }
    for name, text in files.items():
        path = experiment.deployed / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            written.append(f"wrote {path}")
    return written


def _paragraph(readme: Path, *titles: str) -> str | None:
    """The paragraph of a recipe's README under one of the titles; None if it has none."""
    if not readme.is_file():
        return None
    for paragraph in read_utf8(readme).split("\n\n"):
        if paragraph.startswith(tuple(f"**{title}**" for title in titles)):
            return " ".join(paragraph.replace("**", "").split())
    return None


def _collected(experiment: Experiment) -> tuple[Result, list[str]]:
    """The result of a run, collected again if a stage has run since."""
    folder = experiment.folder
    output = experiment.result
    image = experiment.training_curves
    logs = training_logs(folder)
    inputs = [experiment.config.path, *stage_files(experiment), *logs]
    settings = [SCHEMA_VERSION, experiment.variant, sorted(experiment.recipe.decode)]
    place = output.with_name(f".{output.stem}.stamp")
    stamp = Stamp(place, [*settings, str(Path.cwd())], inputs)
    if stamp.is_current():
        return parse(Result, read_json(output), output), [f"{output}: up to date"]
    result = collect(experiment, Path.cwd())
    outputs, messages = [output], []
    curves = read_curves(logs)
    if curves:
        plot_training(curves, image)
        outputs.append(image)
    else:
        messages.append(f"no finished epoch in a log {folder}/train*.log: no training curves drawn")
    write_json(output, as_json(result))
    stamp.write(outputs)
    return result, messages + [f"wrote {path}" for path in outputs]


def _refuse_other_training(experiment: Experiment) -> None:
    """Refuse a deployed model whose checkpoint has changed since, by more epochs, say."""
    checkpoint = deployed_checkpoint(experiment)
    if not deploy_stamp(experiment, checkpoint).is_current():
        raise UserError(
            f"{experiment.deployed} was deployed before {checkpoint} changed; run stages 5 to 7"
        )


def _baselines(
    experiment: Experiment, result: Result, published: Sequence[Result]
) -> dict[str, Result]:
    """The runs that a run was compared with, by their names; without any, the published one."""
    pairs = [pair for score in result.scores for pair in score.comparisons]
    names: Iterable[str] = dict.fromkeys(pair.baseline for pair in pairs)
    if not pairs:
        names = experiment.recipe.compared_with(experiment.config.tag, experiment.variant)[:1]
    found = {}
    for name in names:
        # Of two results of a run the last counts: the local one, which the scores compare with.
        local = _local_results(experiment, name) if pairs else ()
        if (run := baseline_of(result, [*published, *local], name)) is not None:
            found[name] = run
    return found


def _local_results(experiment: Experiment, baseline: str) -> Iterator[Result]:
    """Results in exp/ of a baseline, as far as this version can read them."""
    tag, _ = named_run(experiment, baseline)
    for path in results_of(experiment.other_run(tag)) if tag else ():
        try:
            yield parse(Result, read_json(path), path)
        except (UserError, ValueError):
            continue


def _draw(
    experiment: Experiment, result: Result, baselines: Iterable[Result], others: Sequence[Result]
) -> list[str]:
    """Draw the run, its baselines, and published runs that are best for their size.

    Of a classifier its confusions too.
    """
    images, written = experiment.images, []
    for score in result.scores:
        if isinstance(score, ClassScore):
            image = images / f"confusion_{score.set}.png"
            plot_confusions(score.classes, {result.name: score.confusion}, image)
            written.append(f"wrote {image}")
    compared = list(baselines)
    shown = {result.name, *(run.name for run in compared)}
    series = {"this run": [(result.name, result)]}
    series["compared with"] = [(run.name, run) for run in compared]
    published = [run for run in others if run.name not in shown]
    best = best_for_size([result, *compared, *published])
    series["published"] = [(run.name, run) for run in published if run.name in best]
    image = images / f"{result.scores[0].main_metric}_bytes.png"
    if plot_sizes(series, image):
        written.append(f"wrote {image}")
    return written

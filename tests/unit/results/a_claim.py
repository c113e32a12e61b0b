"""Small results that claims are judged by."""

import numpy as np
import yaml

from espnet_ext.results.claims.papers import judge_paper, read_papers
from espnet_ext.results.comparison import Comparison
from espnet_ext.results.grids import Grid, GridSystem, GridValue
from espnet_ext.results.schema import NOT_MEASURED, RecognitionScore, Result, Training
from espnet_ext.results.stacks import Order, Point, Pruning, StackModel
from espnet_ext.results.store import Results
from espnet_ext.validation import parse
from tests.fixtures.a_run import a_score

FOLDS = 12
NOISE = np.random.default_rng(5).normal(0, 0.01, (9, FOLDS))


def a_grid(rows, **over) -> Grid:
    """A grid named d_t/g with no more than claims need."""
    made = {"dataset": "d", "task": "t", "name": "g", "unit": "fold"}
    made |= {"classes": ["a", "b"], "majority": None}
    return Grid.model_construct(**made | over, systems=rows)


def a_row(name, scores, **over) -> GridSystem:
    sizes = {"parameters": 1000, "max_difference": 2e-6, "macs_per_second": NOT_MEASURED}
    made = {**sizes, "confusion": None, "one_class": None, **over}
    return GridSystem.model_construct(system=name, scores=scores, **made)


def grid(**means) -> Grid:
    """A summary with systems of these mean scores, fold by fold with some noise."""
    rows = []
    for row, (name, value) in enumerate(means.items()):
        scores = value + NOISE[row] - NOISE[row].mean()
        by_unit = {f"v{k}": float(score) for k, score in enumerate(scores)}
        rows.append(a_row(name, {"weighted_f1": GridValue(value=value, by_unit=by_unit)}))
    return a_grid(rows)


def verdict(tmp_path, rule, item, results, **options):
    claim = {"claim": "c", "where": "w", "published": "p", "rule": rule, **options}
    content = {"paper": "P", "scope": "s", "claims": [{**claim, "evidence": [item]}]}
    (tmp_path / "claims").mkdir(exist_ok=True)
    (tmp_path / "claims/p.yaml").write_text(yaml.safe_dump(content))
    (one,) = judge_paper(read_papers(tmp_path)["p"], results, "p.yaml")
    ((_, measured, told),) = one.findings
    return measured, told


def of(*grids, runs=(), similarity=(), pruning=()) -> Results:
    return Results(
        runs={f"{run.recipe}/{run.name}": run for run in runs},
        grids={f"{found.recipe}/{found.name}": found for found in grids},
        similarity={f"{found.recipe}/{found.name}": found for found in similarity},
        pruning={f"{found.recipe}/{found.name}": found for found in pruning},
    )


def text_grid(**pairs) -> Grid:
    """A grid of texts: system a against b, by metric (difference, low, high, p)."""
    compared = [
        Comparison(
            metric=metric,
            baseline="b",
            difference=found[0],
            interval=(found[1], found[2]),
            p=found[3],
            by_seed={"1": found[0], "2": found[0]},
        )
        for metric, found in pairs.items()
    ]
    scores = {}
    for metric in pairs:
        scale = 10 if metric == "bleu" else 1  # below 1 it is no translation
        by_seed = {"1": 0.4 * scale, "2": 0.6 * scale, "3": 9.0}
        scores[metric] = GridValue(value=0.5 * scale, by_seed=by_seed)
    rows = [a_row("a", scores, comparisons=compared), a_row("b", scores, comparisons=[])]
    return a_grid(rows, part="test", metrics=list(pairs), classes=None)


def by_unit(row: GridSystem):
    return row.scores["weighted_f1"].by_unit


PAIR = {"grid": "d_t/g", "system": "a", "than": "b"}


def run(tag="hrf_xs", seconds=NOT_MEASURED, baseline=None, **over) -> Result:
    score = parse(RecognitionScore, a_score(**over), "score")
    if baseline is not None:
        renamed = [c.model_copy(update={"baseline": baseline}) for c in score.comparisons]
        score = score.model_copy(update={"comparisons": renamed})
    return Result.model_construct(
        dataset="d",
        task="asr1",
        tag=tag,
        variant="merged",
        parameters={"total": 900},
        training=Training.model_construct(seconds=seconds),
        scores=[score],
    )


def pruning(full=0.8, interval=(0.7, 0.9), **removable) -> Pruning:
    """A curve of a stack of five layers, of which so many can go by order."""
    whole = Point.model_construct(removed=0, value=full, interval=interval)
    orders = [
        Order.model_construct(order=name, removable=count, points=[whole])
        for name, count in removable.items()
    ]
    model = StackModel.model_construct(layers=5)
    made = {"dataset": "d", "task": "t", "name": "p", "metric": "accuracy", "majority": 0.3}
    return Pruning.model_construct(**made, full=full, orders=orders, model=model)

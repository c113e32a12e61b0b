"""Scores of runs of every task: lines for the terminal, tables and blocks of a page."""

from collections.abc import Iterable, Mapping, Sequence

from espnet_ext.config.training import Recipe
from espnet_ext.results.comparison import FEW_SPEAKERS
from espnet_ext.results.metrics import ALWAYS, METRICS
from espnet_ext.results.pages.text import (
    Table,
    bullets,
    duration,
    listed,
    macs,
    markdown,
    megabytes,
    number,
    parameters,
    real_time_factor,
)
from espnet_ext.results.schema import (
    NOT_MEASURED,
    Average,
    ClassScore,
    RecognitionScore,
    Result,
    Score,
    TranslationScore,
)
from espnet_ext.results.store import baseline_of

_SAME = 1e-9  # scores that differ by less are of one training


def value(score: Score, metric: str, by_speaker: bool = True) -> str:
    """A metric with its 95 % interval, by speaker too where they are few."""
    kind, found = METRICS[metric], score.metrics[metric]
    intervals = [] if found.interval is None else [kind.range(found.interval)]
    few = score.speakers is not None and score.speakers <= FEW_SPEAKERS
    if by_speaker and few and found.by_speaker is not None:
        intervals.append(f"by speaker {kind.range(found.by_speaker)}")
    if not intervals and metric == score.main_metric:
        intervals = ["no interval"]
    return kind.number(found.value) + (f" ({'; '.join(intervals)})" if intervals else "")


def score_lines(score: Score) -> list[str]:
    """One score, and each of its comparisons, as lines for the terminal."""
    parts = [
        f"{kind.name} {value(score, key)}" + (f" {kind.unit}" if kind.unit else "")
        for key, kind in METRICS.items()
        if key in score.metrics
    ]
    line = f"{score.set} {score.method}: {', '.join(parts)}{_details(score)}"
    return [line, *(f"  {found.sentence()}" for found in score.comparisons)]


def _details(score: Score) -> str:
    if isinstance(score, RecognitionScore):
        words, characters = (edits(score, metric) for metric in ("wer", "cer"))
        block = score.bootstrap.block
        blocks = f"; intervals over blocks of {block} utterances" if block > 1 else ""
        line = f"; words: {words} of {score.words}; characters: {characters} of {score.characters}"
        return line + blocks
    if isinstance(score, TranslationScore):
        signature = score.signatures["bleu"]
        no_words = "; no tokenizer for this language, so BLEU is over characters: prefer chrF"
        return (
            f", brevity penalty {score.brevity_penalty:.3f}, {score.utterances} utterances into "
            f"{score.target}; {signature}{no_words if 'tok:char' in signature else ''}"
        )
    assert isinstance(score, ClassScore)
    majority = METRICS["weighted_f1"].number(score.majority.weighted_f1)
    missed = [name for name, item in score.per_class.items() if item.f1 == 0]
    text = f"; always {score.majority.name}: {majority}"
    return f"{text}; F1 = 0 for {', '.join(missed)}" if missed else text


def edits(score: RecognitionScore, metric: str) -> str:
    """The counts of the three kinds of error."""
    found = score.errors[metric]
    return f"{found.substitutions} S, {found.insertions} I, {found.deletions} D"


def model_name(result: Result) -> str:
    """The run's name, and the checkpoint if it is not the training's average."""
    return result.name if result.is_average else f"{result.name} ({result.checkpoint})"


# --- tables of several runs


def sizes_table(results: Iterable[Result]) -> Table:
    """A row for each run: its size, speed, training and origin."""
    header = ["run", "params", "file MB", "MACs/s", "RTF 1-thread", "training time"]
    rows = [
        [
            f"[{model_name(result)}]({result.name}.json)",
            parameters(result),
            megabytes(result.bytes),
            macs(result.macs_per_second),
            real_time_factor(result.timed),
            duration(result.training.seconds),
            f"`{result.command}`",
            _short(result.commit),
        ]
        for result in results
    ]
    return [*header, "command", "commit"], rows


def _short(commit: str) -> str:
    """A commit for a table; one that was not what ran still says so."""
    return f"{commit[:10]}+dirty" if "+dirty" in commit else commit[:10]


def scores_table(results: Sequence[Result], published: Iterable[str] | None = None) -> Table:
    """A row for each run, set and method, with the comparison on the main metric.

    Args:
        results: the runs.
        published: tags of all published runs of the recipe: a baseline that is none of them is
            said to be what is missing.
    """
    known = None if published is None else set(published)
    metrics = list(dict.fromkeys(m for r in results for s in r.scores for m in s.metrics))
    header = ["model", "method", "set", *(f"{METRICS[m].title} (95 % CI)" for m in metrics)]
    rows = []
    for result in results:
        for score in result.scores:
            row = [model_name(result), score.method, score.set]
            row += [value(score, m) if m in score.metrics else NOT_MEASURED for m in metrics]
            rows.append([*row, *_against(result, score, known)])
    return [*header, "baseline", "difference"], rows


def _against(result: Result, score: Score, published: set[str] | None) -> tuple[str, str]:
    """The baseline, and the comparison on the main metric."""
    found = score.compared()
    if found is not None:
        return found.baseline, found.cell()
    recipe, _ = Recipe.parse(result.config.get("recipe") or {})
    named = next(iter(recipe.compared_with(result.tag, result.variant)), None)
    if named in (None, result.tag):
        return "none", ""
    if published is None or named.partition("/")[0] in published:
        return named, NOT_MEASURED
    return named, f"{NOT_MEASURED}: baseline {named} is not published"


def comparison_lines(results: Sequence[Result]) -> list[str]:
    """A bullet for each score that was compared with a baseline."""
    lines = [
        f"- {result.name}, {score.set}, {score.method}: "
        f"{'; '.join(found.sentence() for found in score.comparisons)}."
        for result in results
        for score in result.scores
        if score.comparisons
    ]
    return lines or ["No run here names a baseline."]


def other_trainings(results: Sequence[Result]) -> list[str]:
    """A bullet for each score whose baseline was another training than the published one."""
    lines = []
    for result in results:
        for score in result.scores:
            for pair in score.all_compared():
                baseline = baseline_of(result, results, pair.baseline)
                published = None if baseline is None else _same_score(baseline, score)
                if published is None:
                    continue
                has = published.metrics[pair.metric].value
                if abs(score.other_value(pair) - has) < _SAME:
                    continue
                by = f" by {published.method}" if published.method != score.method else ""
                lines.append(
                    f"- {result.name}, {score.set}: {pair.baseline} had {pair.kind.name} "
                    f"{pair.kind.number(score.other_value(pair))}; the published one has "
                    f"{pair.kind.number(has)}{by}."
                )
    return lines


def _same_score(baseline: Result, score: Score) -> Score | None:
    """The score of a baseline on the same set, by the same method if it has that."""
    on_set = [one for one in baseline.scores if one.set == score.set]
    return min(on_set, key=lambda one: one.method != score.method, default=None)


# --- one run against its baseline, as stage 8 prints it


def run_table(result: Result, baselines: Mapping[str, Result]) -> Table:
    """A row for each score of a run, and one for each of its baselines.

    Args:
        result: the run.
        baselines: by the names in its comparisons, those whose results are there: such a row has
            a size and intervals too. Or published runs, where there was nothing to compare with.
    """
    metrics = list(result.scores[0].metrics)
    is_class = isinstance(result.scores[0], ClassScore)  # which has one method
    columns = ["set"] if is_class else ["method", "set"]
    header = ["model", *columns, "MB", *(f"{METRICS[m].title} (95 % CI)" for m in metrics)]
    rows = []
    for score in result.scores:
        cells = [score.set] if is_class else [score.method, score.set]
        values = [value(score, metric, by_speaker=False) for metric in metrics]
        rows.append([result.name, *cells, megabytes(result.bytes), *values])
        for name in dict.fromkeys(pair.baseline for pair in score.comparisons):
            run = baselines.get(name)
            other = None if run is None else run.score(score.set, score.method)
            size = NOT_MEASURED if run is None else megabytes(run.bytes)
            values = [_of_baseline(score, name, metric, other) for metric in metrics]
            rows.append([f"baseline {name}", *cells, size, *values])
        for run in () if score.comparisons else baselines.values():
            if (other := run.score(score.set, score.method)) is not None:
                values = [value(other, metric, by_speaker=False) for metric in metrics]
                rows.append([f"published {run.name}", *cells, megabytes(run.bytes), *values])
    return header, rows


def _of_baseline(score: Score, baseline: str, metric: str, other: Score | None) -> str:
    """The value that a score was compared with; its interval is known if ``other`` has it."""
    pairs = (pair for pair in score.all_compared(metric) if pair.baseline == baseline)
    before = next(map(score.other_value, pairs), None)
    if before is None:
        return NOT_MEASURED if other is None else value(other, metric, by_speaker=False)
    if other is not None and abs(other.metrics[metric].value - before) < _SAME:
        return value(other, metric, by_speaker=False)
    return METRICS[metric].number(before)


def size_line(result: Result) -> str:
    """Size, speed and training of a run, in one line."""
    return (
        f"{model_name(result)}: {parameters(result)} parameters, {megabytes(result.bytes)} MB, "
        f"{macs(result.macs_per_second)} MACs/s, RTF {real_time_factor(result.timed)}, "
        f"trained in {duration(result.training.seconds)}"
    )


# --- a block of a page for one run


def block(result: Result, file: str) -> list[str]:
    """Everything about a run; ``file`` is its JSON, relative to the page."""
    training = result.training
    lines = [f"### {result.name}", ""]
    for table in _score_tables(result):
        lines += [table, ""]
    facts = {
        "command": f"`{result.command}`",
        "config": f"`{result.config_path}`, resolved in [{file}]({file})",
        "encoder, variant": f"{result.encoder}, {result.variant}",
        "checkpoint": _checkpoint(result),
        "commit": result.commit,
        "seed": str(result.seed),
        "parameters": listed(result.parameters),
        "parameters in training": listed(training.parameters),
        "file": f"{number(result.bytes)} bytes",
        "training": f"{duration(training.seconds)}, {training.epochs} epochs, "
        f"peak {number(training.peak_rss_mb)} MB; device {training.device}, "
        f"threads {training.threads}, {training.dtype}",
        "versions": listed(result.versions),
        "machine": listed(result.machine),
    }
    return lines + bullets(facts | _how_scored(result))


def _score_tables(result: Result) -> list[str]:
    speed = {
        (log.set, log.method): [real_time_factor(log, rounds=True), number(log.peak_rss_mb)]
        for log in result.decoding
    }
    header, rows, more = [], [], []
    for score in result.scores:
        cells = {"set": score.set, "method": score.method}
        if isinstance(score, RecognitionScore):
            cells |= {"utterances": str(score.utterances), "words": str(score.words)}
            cells |= {"WER % (95 % CI)": value(score, "wer"), "word errors": edits(score, "wer")}
            cells |= {"CER % (95 % CI)": value(score, "cer")}
            cells |= {"character errors": edits(score, "cer")}
        elif isinstance(score, TranslationScore):
            cells |= {"into": score.target, "utterances": str(score.utterances)}
            cells |= {"words": str(score.words), "BLEU (95 % CI)": value(score, "bleu")}
            cells |= {"precisions": "/".join(f"{p:.1f}" for p in score.precisions)}
            cells |= {"brevity penalty": f"{score.brevity_penalty:.3f}"}
            cells |= {"chrF (95 % CI)": value(score, "chrf")}
        elif isinstance(score, ClassScore):
            cells |= {METRICS[key].name: value(score, key) for key in score.metrics}
            cells |= {"decisions": str(score.decisions)}
            more += class_tables(score)
        found = speed.get((score.set, score.method), [NOT_MEASURED] * 2)
        cells |= dict(zip(("RTF 1-thread (of rounds)", "peak RSS MB"), found, strict=True))
        header = list(cells)
        rows.append(list(cells.values()))
    return [markdown(header, rows), *more]


def class_tables(score: ClassScore) -> list[str]:
    """F1 by class, and the confusion matrix."""
    header = ["class", "F1", "precision", "recall", "support"]
    rows = [
        [name, *(f"{x:.3f}" for x in (item.f1, item.precision, item.recall)), str(item.support)]
        for name, item in score.per_class.items()
    ]
    matrix = [
        [name, *map(str, row)] for name, row in zip(score.classes, score.confusion, strict=True)
    ]
    return [markdown(header, rows), markdown(["true, recognised as", *score.classes], matrix)]


def _how_scored(result: Result) -> dict[str, str]:
    """Conditions of the scores: the normalisation, or sacreBLEU's signatures."""
    found: dict[str, list[str]] = {}
    for score in result.scores:
        if isinstance(score, RecognitionScore):
            found.setdefault("text normalisation", []).append(score.normalisation)
        elif isinstance(score, TranslationScore):
            for metric, signature in score.signatures.items():
                name = f"{METRICS[metric].name} signature"
                found.setdefault(name, []).append(f"`{signature}`")
        elif isinstance(score, ClassScore):
            always = f"{score.majority.name} {score.majority.weighted_f1:.3f}"
            found.setdefault(ALWAYS, []).append(f"{score.set}: {always}")
    return {k: "; ".join(dict.fromkeys(v)).replace("*", "\\*") for k, v in found.items()}


def _checkpoint(result: Result) -> str:
    """The deployed file and, if it is the training's average, its epochs."""
    average = result.training.average
    if not isinstance(average, Average) or result.checkpoint != average.file:
        return result.checkpoint
    return f"{result.checkpoint}, epochs {', '.join(map(str, sorted(average.epochs)))}"

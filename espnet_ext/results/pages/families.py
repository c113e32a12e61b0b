"""Families of nested systems: each member against the run that it was compared with.

A family is one training of which several variants were published. A member is compared with the
baseline of its score: the same system trained alone, in an ablation the same member of the whole
family, or another variant of the same training, such as the pretrained model as it was.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from espnet_ext.config.training import UNTRAINED
from espnet_ext.results.metrics import METRICS
from espnet_ext.results.pages.scores import sizes_table, value
from espnet_ext.results.pages.text import duration, markdown, megabytes, parameters
from espnet_ext.results.schema import NOT_MEASURED, RecognitionScore, Result
from espnet_ext.results.store import baseline_of

_BETTER = 0.1  # than any smaller run's score: the run has a label in the plot of a recipe
_NAMES = "A run whose name ends in a variant is that `--variant` of its training, from stage 5 on."


@dataclass(frozen=True)
class Family:
    """The published members of one training, largest file first.

    Attributes:
        tag: of the training.
        members: its runs.
        baselines: the run that a member was compared with, by the member's variant.
        rounded: runs of the largest baseline that were rounded after training.
    """

    tag: str
    members: tuple[Result, ...]
    baselines: Mapping[str, Result]
    rounded: tuple[Result, ...]

    @property
    def plot(self) -> str:
        """Name of the file of its plot."""
        return f"family_{self.tag}.svg"

    @property
    def has_plot(self) -> bool:
        """False if the size of its largest member was not measured."""
        return self.members[0].bytes != NOT_MEASURED

    def series(self) -> dict[str, list[tuple[str, Result]]]:
        """The runs of its plot, by series, with their labels."""
        shown = {run.name for run in self.members}
        others = {run.name: run for run in self.baselines.values() if run.name not in shown}
        alike = {"merged", *(run.variant for run in self.members)}  # next to a member, or alone
        alone, rounded = {run.tag for run in others.values()}, {run.tag for run in self.rounded}
        return {
            f"{self.tag}, one training": [(run.variant, run) for run in self.members],
            f"baseline {alone.pop()}" if len(alone) == 1 else "baselines": [
                ("" if run.tag != self.tag and run.variant in alike else run.variant, run)
                for run in others.values()
            ],
            f"{', '.join(rounded)}, rounded after training": [(r.variant, r) for r in self.rounded],
        }

    def runs(self) -> dict[str, Result]:
        """All runs that this family's section shows, by name."""
        every = (*self.members, *self.baselines.values(), *self.rounded)
        return {run.name: run for run in every}

    def trained_alone(self) -> list[Result]:
        """One run of each other training that members are compared with, in their order."""
        runs = [self.baselines[m.variant] for m in self.members if m.variant in self.baselines]
        return list({run.tag: run for run in runs if run.tag != self.tag}.values())


def find_families(results: Iterable[Result]) -> list[Family]:
    """Return the families among the results of a recipe."""
    recipe = list(results)
    found = []
    for tag in dict.fromkeys(run.tag for run in recipe):
        members = [run for run in recipe if run.tag == tag and _is_member(run)]
        if len(members) < 2:
            continue
        members.sort(key=lambda run: (-_bytes(run), run.variant))
        baselines = {run.variant: baseline_of(run, recipe) for run in members}
        compared = {variant: run for variant, run in baselines.items() if run is not None}
        largest = compared.get(members[0].variant, members[0]).tag
        rounded = [run for run in recipe if run.tag == largest and _is_rounded(run)]
        rounded.sort(key=_bytes, reverse=True)
        found.append(Family(tag, tuple(members), compared, tuple(rounded)))
    return found


def size_series(results: Iterable[Result]) -> dict[str, list[tuple[str, Result]]]:
    """The runs of a recipe by series, with labels: families, and all others.

    Families that are compared with another one are one series. Of what a family's section shows,
    those have a label here that are best for their size, and the smallest of each other family.
    """
    every = list(results)
    families = find_families(every)
    tags = {family.tag for family in families}
    members = {run.name for family in families for run in family.members}
    named = best_for_size(every) | {run.name for run in without_families(every)}
    named |= {run.name for run in every if run.variant == UNTRAINED}
    others = {
        family.tag
        for family in families
        if not any(run.tag in tags - {family.tag} for run in family.baselines.values())
    }
    named |= {family.members[-1].name for family in families if family.tag in others}
    labelled = {run.name: (run.name if run.name in named else "", run) for run in every}
    series = {"other runs": [pair for name, pair in labelled.items() if name not in members]}
    for family in families:
        is_other = family.tag in others
        title = f"family {family.tag}" if is_other else "families compared with these"
        series.setdefault(title, []).extend(labelled[run.name] for run in family.members)
    return series


def best_for_size(runs: Sequence[Result]) -> set[str]:
    """Names of the runs that are a tenth better than any smaller run, on their first set."""
    names: set[str] = set()
    best: dict[str, float] = {}
    for run in sorted((run for run in runs if _bytes(run)), key=_bytes):
        score = run.scores[0]
        metric = METRICS[score.main_metric]
        value = score.metrics[metric.key].value
        least = best.get(score.set, value) * (1 + metric.direction * _BETTER)
        if score.set not in best or metric.direction * (value - least) >= 0:
            best[score.set] = value
            names.add(run.name)
    return names


def without_families(results: Iterable[Result]) -> list[Result]:
    """Return the runs of a recipe that no family shows."""
    every = list(results)
    shown = {name for family in find_families(every) for name in family.runs()}
    return [run for run in every if run.name not in shown]


def _is_member(run: Result) -> bool:
    conf = run.config.get("encoder_conf") or {}
    is_recogniser = isinstance(run.scores[0], RecognitionScore)
    is_member = run.variant != UNTRAINED and not _is_rounded(run)
    return is_recogniser and conf.get("nested") is not None and is_member


def _is_rounded(run: Result) -> bool:
    """True of a variant that was rounded after training, as merged+4b; not of 4L-48+2L-48-4b."""
    return re.search(r"\+\d+b$", run.variant) is not None


def _bytes(run: Result) -> int:
    return 0 if isinstance(run.bytes, str) else run.bytes


def family_section(family: Family) -> list[str]:
    """Return the family's section of its recipe's page."""
    lines = [f"### Family {family.tag}", ""]
    if family.has_plot:
        lines += [f"![WER against bytes]({family.plot})", ""]
    for name, method in dict.fromkeys((s.set, s.method) for s in family.members[0].scores):
        header = ["member", "params", "file MB", "WER % (95 % CI)", "CER % (95 % CI)"]
        header += ["baseline", "its WER %", "difference in WER"]
        rows = [_row(family, member, name, method) for member in family.members]
        for run in family.rounded:
            row = [run.name, parameters(run), megabytes(run.bytes), *_rates(run, name, method)]
            rows.append([*row, "rounded after training", "", ""])
        lines += [f"{name}, {method}:", "", markdown(header, rows), ""]
        if more := _further(family.members, name, method):
            lines += [*more, ""]
    lines += [_times(family), "", _NAMES, ""]
    return [*lines, markdown(*sizes_table(family.runs().values()))]


def _row(family: Family, member: Result, name: str, method: str) -> list[str]:
    row = [member.variant, parameters(member), megabytes(member.bytes)]
    row += _rates(member, name, method)
    other = family.baselines.get(member.variant)
    score = member.score(name, method)
    found = None if score is None else score.compared("wer")
    if score is None or found is None:
        return [*row, NOT_MEASURED if other is None else other.name, NOT_MEASURED, NOT_MEASURED]
    # A set may lack the baseline that the first set has.
    is_other = found.baseline == member.scores[0].baseline
    against = other.name if other is not None and is_other else found.baseline
    # Not the baseline's published score: it may have been trained again since.
    return [*row, against, METRICS["wer"].number(score.other_value(found)), found.cell()]


def _further(members: Iterable[Result], name: str, method: str) -> list[str]:
    """A bullet for each member that was compared with more than the baseline of its row."""
    scores = {member.variant: member.score(name, method) for member in members}
    found = {variant: score.all_compared()[1:] for variant, score in scores.items() if score}
    return [
        f"- {variant}: {'; '.join(one.sentence() for one in compared)}."
        for variant, compared in found.items()
        if compared
    ]


def _rates(run: Result, name: str, method: str) -> list[str]:
    score = run.score(name, method)
    return [NOT_MEASURED if score is None else value(score, metric) for metric in ("wer", "cer")]


def _times(family: Family) -> str:
    """The time of the one training, and of the trainings that it replaces."""
    its = family.members[0].training.seconds
    alone = family.trained_alone()
    each = [run.training.seconds for run in alone]
    measured = [seconds for seconds in each if not isinstance(seconds, str)]
    if not alone or isinstance(its, str) or len(measured) < len(each):
        return f"Training time: {duration(its)}."
    total = sum(measured)
    if len(alone) == 1:
        return (
            f"Training time: {duration(its)}; of its baseline {duration(total)} "
            f"({alone[0].tag}), {its / total:.2f} times that."
        )
    counted = [f"{n}: {sum(measured[:n]) / its:.2f}" for n in range(1, len(alone) + 1)]
    return (
        f"Training time: {duration(its)}; {duration(total)} for the {len(alone)} trained alone, "
        f"{total / its:.2f} times the family's. By how many are counted, from the largest file "
        f"on: {', '.join(counted)}."
    )

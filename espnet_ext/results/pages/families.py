"""Families of nested systems in RESULTS.md: each member beside the system trained alone.

A family is one training of which several variants were published; what a member is compared with
is what its score names as baseline: the same system trained alone or, in an ablation, the same
member of the whole family.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.results.pages.tables import (
    decoding_rtf,
    difference,
    duration,
    error_rates,
    macs,
    markdown,
    megabytes,
    parameters,
    rate,
)
from espnet_ext.results.run import corpus_name, published_path, run_name
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.score.pairs import baseline_form

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """The published members of one training, largest file first, and what stands beside them."""

    tag: str
    members: tuple[Result, ...]
    beside: Mapping[str, Result]  # variant -> the run that it was compared with
    rounded: tuple[Result, ...]  # the largest that it was compared with, rounded after training

    @property
    def corpus(self) -> str:
        """The folder of its results."""
        return corpus_name(self.members[0])

    @property
    def plot(self) -> str:
        """Name of the file of its plot."""
        return f"family_{self.tag}.svg"

    def runs(self) -> dict[str, Result]:
        """All runs that this family's table shows, by name."""
        every = (*self.members, *self.beside.values(), *self.rounded)
        return {run_name(run): run for run in every}

    def trained_beside(self) -> list[Result]:
        """One run of each training that the members are compared with, in their order."""
        runs = [self.beside[m["variant"]] for m in self.members if m["variant"] in self.beside]
        return list({run["tag"]: run for run in runs}.values())


def find_families(results: Sequence[Result]) -> list[Family]:
    """Return the families among the results of one or more recipes."""
    found = []
    for key in dict.fromkeys((r["dataset"], r["task"], r["tag"]) for r in results):
        recipe = [r for r in results if (r["dataset"], r["task"]) == key[:2]]
        members = [r for r in recipe if r["tag"] == key[2] and _is_member(r)]
        if len(members) < 2:
            continue
        members.sort(key=lambda r: (-_bytes(r), r["variant"]))
        beside = {m["variant"]: _beside(m, recipe) for m in members}
        compared = {variant: run for variant, run in beside.items() if run is not None}
        largest = compared.get(members[0]["variant"], members[0])["tag"]
        rounded = sorted(
            (r for r in recipe if r["tag"] == largest and "+" in r["variant"]), key=_bytes
        )
        found.append(Family(key[2], tuple(members), compared, tuple(reversed(rounded))))
    return found


def without(results: Iterable[Result]) -> list[Result]:
    """Return the runs that no family shows."""
    every = list(results)
    shown = {(family.corpus, name) for family in find_families(every) for name in family.runs()}
    return [r for r in every if (corpus_name(r), run_name(r)) not in shown]


def _is_member(result: Result) -> bool:
    conf = result["config"].get("encoder_conf") or {}
    return "nested" in conf and "+" not in result["variant"] and "wer" in result["scores"][0]


def _bytes(result: Result) -> int:
    return 0 if result["bytes"] == NOT_MEASURED else int(result["bytes"])


def _beside(member: Result, recipe: Sequence[Result]) -> Result | None:
    """The published run that the first score of ``member`` was compared with."""
    versus = member["scores"][0]["baseline"]
    if versus is None:
        return None
    tag, _, variant = versus["tag"].partition("/")
    forms = {r["variant"]: r for r in recipe if r["tag"] == tag}
    form = baseline_form(forms, member["variant"], variant)
    return None if form is None else forms[form]


def page_lines(family: Family, folder: str) -> list[str]:
    """Return the family's section of the page; ``folder`` holds its plot."""
    lines = [f"### Family {family.tag}", ""]
    if family.members[0]["bytes"] != NOT_MEASURED:
        lines += [f"![WER against bytes]({folder}/{family.plot})", ""]
    for name, method in dict.fromkeys(
        (score["set"], score["method"]) for score in family.members[0]["scores"]
    ):
        header = ["member", "params", "file MB", "WER % (95 % CI)", "CER % (95 % CI)"]
        header += ["beside it", "its WER %", "difference in WER"]
        rows = [_row(family, member, name, method) for member in family.members]
        for run in family.rounded:
            row = [run_name(run), parameters(run), megabytes(run["bytes"])]
            score = _score(run, name, method)
            rates = [rate(score, metric) if score else NOT_MEASURED for metric in ("wer", "cer")]
            rows.append([*row, *rates, "rounded after training", "", ""])
        lines += [f"{name}, {method}:", "", markdown(header, rows), ""]
    return [*lines, *_times(family), "", *_provenance(family, Path(folder))]


def _provenance(family: Family, folder: Path) -> list[str]:
    """A table of the runs: where each number comes from."""
    header = ["run", "command", "commit", "MACs/s", "RTF 1-thread", "training time"]
    rows = []
    for name, run in family.runs().items():
        path = published_path(folder.parent, run)
        row = [f"[{name}]({path.as_posix()})", f"`{run['command']}`", str(run["commit"])[:10]]
        speed = [decoding_rtf(log) for log in run["decoding"]][:1] or [NOT_MEASURED]
        row += [macs(run["macs_per_second"]), *speed]
        rows.append([*row, duration(run["training"]["seconds"])])
    text = "A run whose name ends in a form is that `--variant` of its training, from stage 5 on."
    return [text, "", markdown(header, rows)]


def _row(family: Family, member: Result, name: str, method: str) -> list[str]:
    row = [member["variant"], parameters(member), megabytes(member["bytes"])]
    score = _score(member, name, method)
    other = family.beside.get(member["variant"])
    its = None if other is None else _score(other, name, method)
    row += [rate(score, metric) if score else NOT_MEASURED for metric in ("wer", "cer")]
    row += [NOT_MEASURED if other is None else run_name(other)]
    row += [NOT_MEASURED if its is None else f"{100 * its['wer']['value']:.1f}"]
    if score is None or score["baseline"] is None:
        return [*row, NOT_MEASURED]
    return [*row, difference(score, error_rates())]


def _score(result: Result, name: str, method: str) -> Mapping[str, Any] | None:
    found = (s for s in result["scores"] if (s["set"], s["method"]) == (name, method))
    return next(found, None)


def _times(family: Family) -> list[str]:
    """What the one training took beside those that it stands for, and by how many are counted."""
    own = family.members[0]["training"]["seconds"]
    beside = family.trained_beside()
    each = [run["training"]["seconds"] for run in beside]
    if not beside or NOT_MEASURED in (own, *each):
        return [f"Training time: {duration(own)}."]
    text = f"Training time: {duration(own)}; beside it {duration(sum(each))}"
    if len(each) == 1:
        return [f"{text} ({beside[0]['tag']}), {own / each[0]:.2f} times that."]
    counted = [f"{n}: {sum(each[:n]) / own:.2f}" for n in range(1, len(each) + 1)]
    return [
        f"{text} for the {len(each)} trained alone, {sum(each) / own:.2f} times the family's. "
        f"By how many are counted, from the largest file on: {', '.join(counted)}."
    ]


def plot_family(family: Family, path: Path) -> bool:
    """Draw WER against bytes: members, what stands beside them, rounded after training.

    Returns:
        False, and no file, if the bytes of the largest member were not measured.
    """
    from espnet_ext.results.pages.plots import new_figure, save_figure

    if family.members[0]["bytes"] == NOT_MEASURED:
        return False
    series = {
        f"{family.tag}, one training": family.members,
        "beside it": tuple(family.beside.values()),
        "largest, rounded after training": family.rounded,
    }
    places = dict.fromkeys((s["set"], s["method"]) for s in family.members[0]["scores"])
    figure, axes = new_figure(len(places))
    for axis, (name, method) in zip(axes, places, strict=True):
        for (label, runs), marker in zip(series.items(), "os^", strict=True):
            scored = [(r["bytes"] / 1e6, _score(r, name, method)) for r in runs if _bytes(r)]
            points = [(size, score["wer"]) for size, score in scored if score is not None]
            if points:
                _draw(axis, points, label, marker)
        axis.set(xscale="log", xlabel="file, MB", ylabel="WER, %", title=f"{name}, {method}")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize="small")
    save_figure(figure, path)
    return True


def _draw(
    axis: Any, points: Sequence[tuple[float, Mapping[str, Any]]], label: str, marker: str
) -> None:
    from espnet_ext.results.pages.plots import error_bar

    values, *ends = zip(*(error_bar(found, 100) for _, found in points), strict=True)
    sizes = [size for size, _ in points]
    axis.errorbar(sizes, values, yerr=ends, fmt=marker, capsize=2, label=label, alpha=0.8)

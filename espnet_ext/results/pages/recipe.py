"""The page of a recipe, results/<dataset>_<task>/README.md."""

from espnet_ext.results.metrics import METRICS
from espnet_ext.results.pages.families import family_section, find_families, without_families
from espnet_ext.results.pages.grids import grid_section
from espnet_ext.results.pages.scores import (
    block,
    comparison_lines,
    other_trainings,
    scores_table,
    sizes_table,
)
from espnet_ext.results.pages.stacks import stack_section
from espnet_ext.results.pages.text import markdown
from espnet_ext.results.store import Results

_OTHERS = (
    "The same config, trained or decoded at another time. The differences are those to that "
    "training."
)


def recipe_page(name: str, results: Results) -> str:
    """Return everything that was published of a recipe: runs, families, grids, stacks."""
    runs = list(results.runs.values())
    single, families = without_families(runs), find_families(runs)
    sections: list[list[str]] = []
    if single:
        sections.append(
            [
                *("## Runs", "", markdown(*scores_table(single, [run.tag for run in runs])), ""),
                *(markdown(*sizes_table(single)), ""),
                f"![scores against sizes]({plot_name(results)})",
                *("", "### Against the baselines", "", *comparison_lines(single)),
            ]
        )
    if families:
        sections.append(["## Families of nested systems"])
    sections += [family_section(family) for family in families]
    if others := other_trainings(runs):
        sections.append(["## Compared with another training", "", _OTHERS, "", *others])
    if results.grids:
        sections.append(["## Grids of trainings"])
    sections += [grid_section(grid) for grid in results.grids.values()]
    if results.stacks:
        sections.append(["## Layers of stacks"])
    sections += [stack_section(record) for record in results.stacks]
    if single:
        sections.append(["## Each run"])
    sections += [block(run, f"{run.name}.json") for run in single]
    lines = [f"# Results of {name}", "", "How to read: [RESULTS.md](../../RESULTS.md)."]
    for section in sections:
        lines += ["", *section]
    return "\n".join(lines) + "\n"


def plot_name(results: Results) -> str:
    """File of the plot of a recipe's runs: its main metric against bytes."""
    first = next(iter(results.runs.values()))
    return f"{METRICS[first.scores[0].main_metric].key}_bytes.svg"

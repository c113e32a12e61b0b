"""Publishing: a result goes into the folder of committed results, its pages are made again."""

from collections.abc import Sequence
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.files import write_text
from espnet_ext.results.claims.papers import read_papers
from espnet_ext.results.pages.families import find_families, size_series
from espnet_ext.results.pages.index import pages, readme_with_results
from espnet_ext.results.pages.recipe import plot_name
from espnet_ext.results.pages.text import without_tags
from espnet_ext.results.peers import Peer, find_peers
from espnet_ext.results.plots.grids import plot_grid
from espnet_ext.results.plots.sizes import plot_sizes
from espnet_ext.results.plots.stacks import plot_stack
from espnet_ext.results.run import repository_root
from espnet_ext.results.schema import Record, dumps
from espnet_ext.results.store import Results, folder_of, path_of, read_results


def publishing_root() -> Path:
    """Return the repository that the recipe in the working folder publishes into.

    Raises:
        UserError: it is in none.
    """
    root = repository_root(Path.cwd())
    if root is None:
        raise UserError("this recipe is in no repository (no folder egs/ above)")
    return root


def refuse_uncommitted(name: str, commit: str) -> None:
    """Refuse to publish what was trained from a tree that no commit describes."""
    if "+dirty" in commit or "unknown" in commit:
        raise UserError(
            f"not published: {name} was trained from the commit {commit}, so nobody can "
            "repeat it; train it from a committed tree, or give --allow-dirty"
        )


def publish(record: Record, folder: Path) -> None:
    """Write a result into the folder of committed results; make all pages and plots again."""
    path = path_of(folder, record)
    _rewrite(path, dumps(record))
    regenerate(folder)


def regenerate(folder: Path) -> None:
    """Write RESULTS.md, the pages and plots of ``folder``, and the table of README.md.

    Raises:
        UserError: there are no results, or a file does not fit.
    """
    results = read_results(folder)
    if not results.recipes:
        raise UserError(f"no results in {folder}; publish one: espnet-ext report CONFIG --publish")
    written = pages(results, read_papers(folder), folder)
    made = {page: without_tags(text) for page, text in written.items()}
    readme = folder.resolve().parent / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        made[readme] = readme_with_results(text, results, folder)
    for name, found in results.recipes.items():
        _draw(found, folder / name, find_peers(results.benchmarks, name))
    for page, text in made.items():
        _rewrite(page, text)


def _draw(results: Results, folder: Path, peers: Sequence[Peer]) -> None:
    """Draw every plot of a recipe."""
    runs = list(results.runs.values())
    if runs:
        plot_sizes(size_series(runs), folder / plot_name(results), peers)
    for family in find_families(runs):
        if family.has_plot:
            plot_sizes(family.series(), folder / family.plot)
    for grid in results.grids.values():
        plot_grid(grid, folder / "grids", kind="svg")
    for record in results.stacks:
        plot_stack(record, folder / folder_of(record) / f"{record.name}.svg")


def _rewrite(page: Path, text: str) -> None:
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        print(f"{page}: up to date")
        return
    write_text(page, text)
    print(f"wrote {page}")

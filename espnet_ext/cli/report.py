"""Collect a run into one validated JSON; print the table; make plots and RESULTS.md.

Stage 8. Reads what stages 4 to 7 wrote for CONFIG, writes exp/<tag>/result.json and the plots
in exp/<tag>/images/, and prints the run beside the committed ones. --publish also copies the
result into results/<dataset>_<task>/ and regenerates RESULTS.md and the README's table, if the
run was trained from a commit (--allow-dirty: from any tree); --all
only regenerates these.

Example:
    espnet-ext report conf/train_hrf_conformer_xs.yaml
    espnet-ext report conf/train_hrf_conformer_xs.yaml --publish
    espnet-ext report --all
"""

import argparse
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config, load_config
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, read_json, write_json, write_text
from espnet_ext.stages.deploy import deploy_stamp


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", help="training config, run in the recipe's folder")
    parser.add_argument("--tag", help="name of the experiment (default: from the config's name)")
    parser.add_argument("--variant", help="deployed form (default: the config's)")
    parser.add_argument("--publish", action="store_true", help="copy into results/, RESULTS.md")
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="publish a run whose training no commit describes",
    )
    parser.add_argument("--all", action="store_true", help="regenerate RESULTS.md and its plots")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="folder of the committed results (default: results/ of the repository); "
        "RESULTS.md is beside it",
    )


def run(args: argparse.Namespace) -> None:
    """Report one run, or all.

    Raises:
        UserError: options that do not go together, a stage that has not run, or a result that
            does not fit the schema.
    """
    if args.all:
        if args.config or args.publish or args.variant or args.tag:
            raise UserError(
                "--all takes no CONFIG, --tag, --variant or --publish: it reads results/"
            )
        regenerate(_results_folder(args, for_all=True))
        return
    if args.config is None:
        raise UserError("give a CONFIG (as in conf/train_*.yaml), or --all")
    folder = _results_folder(args, for_all=False)
    if args.publish and folder is None:
        raise UserError("this recipe is in no repository (no folder egs/ above): give --results")
    result = _one(args)
    if args.publish and not args.allow_dirty:
        refuse_uncommitted(result["tag"], result["commit"])
    committed = _print_beside(result, folder)
    if args.publish:
        assert folder is not None  # refused above
        _publish(result, committed, folder)


def refuse_uncommitted(name: str, commit: str) -> None:
    """Refuse to publish what was trained from a tree that no commit describes."""
    if "+dirty" in commit or "unknown" in commit:
        raise UserError(
            f"not published: {name} was trained from the commit {commit}, so nobody can "
            "repeat it; train it from a committed tree, or give --allow-dirty"
        )


def _results_folder(args: argparse.Namespace, for_all: bool) -> Path | None:
    from espnet_ext.results.run import package_root, repository_root

    if args.results is not None:
        return Path(args.results)
    # A recipe that lies elsewhere must not publish into the repository of the package.
    root = repository_root(Path.cwd()) or (package_root() if for_all else None)
    return None if root is None else root / "results"


def _one(args: argparse.Namespace) -> dict[str, Any]:
    from espnet_ext.results.pages.plots import plot_training, read_curves, training_logs
    from espnet_ext.results.run import collect, refuse_other_inputs, stage_files
    from espnet_ext.results.schema import RESULT, SCHEMA_VERSION, validate

    config = load_config(args.config, args.tag)
    variant = args.variant or config.recipe.variant
    refuse_other_inputs(config, variant)
    _refuse_other_training(config, variant)
    suffix = "" if variant == config.recipe.variant else f"_{variant}"
    output = config.exp / f"result{suffix}.json"
    image = config.exp / "images" / "training_curves.png"
    logs = training_logs(config.exp)
    inputs = [config.path, *stage_files(config, variant), *logs]
    settings = [SCHEMA_VERSION, variant, sorted(config.recipe.decode), str(Path.cwd())]
    stamp = Stamp(config.exp / f".result{suffix}.stamp", settings, inputs)
    if stamp.is_current():
        print(f"{output}: up to date")
        result = read_json(output)
        validate(result, RESULT, str(output))
        return result
    result = collect(config, variant, Path.cwd())
    outputs = [output]
    curves = read_curves(logs)
    if curves:
        plot_training(curves, image)
        outputs.append(image)
    else:
        print(f"no finished epoch in a log {config.exp}/train*.log: no training curves drawn")
    write_json(output, result)
    stamp.write(outputs)
    for path in outputs:
        print(f"wrote {path}")
    return result


def _refuse_other_training(config: Config, variant: str) -> None:
    """Refuse a deployed model whose checkpoint has changed since, by more epochs, say."""
    deployed = config.exp / "deploy" / variant / "deploy.json"
    checkpoint = Path(str(read_json(deployed).get("checkpoint")))
    if not deploy_stamp(Experiment.of(config, variant), checkpoint).is_current():
        raise UserError(
            f"{deployed.parent} was deployed before {checkpoint} changed; run stages 5 to 7"
        )


def _print_beside(result: dict[str, Any], folder: Path | None) -> list[dict[str, Any]]:
    """Print the run and the committed runs of its recipe; return all committed results."""
    from espnet_ext.results.pages import classes, tables, translation
    from espnet_ext.results.pages.plots import plot_score_bytes
    from espnet_ext.results.pages.tables import print_table
    from espnet_ext.results.run import read_results

    committed = [] if folder is None else read_results(folder)
    here = [
        r for r in committed if (r["dataset"], r["task"]) == (result["dataset"], result["task"])
    ]
    others = [{**r, "tag": f"{r['tag']} (committed)"} for r in here if r != result]
    if classes.is_classification([result]):
        print_table(*classes.summary_table([result, *others]))
        for score in result["scores"]:
            print(classes.score_line(score), *classes.class_tables(score), sep="\n\n")
            image = Path("exp", result["tag"], "images", f"confusion_{score['set']}.png")
            classes.plot_confusion(score["classes"], score["confusion"], image)
            print(f"wrote {image}")
        return committed
    metrics, compare, summary = ("wer", "cer"), tables.comparison, tables.summary_table
    if translation.is_translation([result]):
        metrics, compare = ("bleu", "chrf"), translation.comparison
        summary = translation.summary_table
    print_table(*summary([result, *others]))
    for score in result["scores"]:
        if score["baseline"]:
            sentences = "; ".join(compare(score, metric) for metric in metrics)
            print(f"{score['set']}, {score['method']}: {sentences}")
    image = Path("exp", result["tag"], "images", f"{metrics[0]}_bytes.png")
    if plot_score_bytes([result, *others], image, metrics[0]):
        print(f"wrote {image}")
    return committed


def _publish(result: dict[str, Any], committed: list[dict[str, Any]], folder: Path) -> None:
    from espnet_ext.results.run import published_path

    path = published_path(folder, result)
    if result in committed:
        print(f"{path}: up to date")
    else:
        write_json(path, result)
        print(f"wrote {path}")
    regenerate(folder)


def regenerate(folder: Path | None) -> None:
    """Write RESULTS.md, its plots and the README's tables anew from the committed results."""
    from espnet_ext.results.benchmarks import read_benchmarks
    from espnet_ext.results.claims import read_claims
    from espnet_ext.results.grids import read_grids
    from espnet_ext.results.pages.families import find_families, plot_family, without
    from espnet_ext.results.pages.layers import read_stacks
    from espnet_ext.results.pages.main import readme_with_results, results_page
    from espnet_ext.results.pages.plots import AXES, plot_score_bytes
    from espnet_ext.results.run import read_results

    if folder is None:
        raise UserError("no repository here (no folder egs/ above): give --results DIR")
    results, measured = read_results(folder), read_benchmarks(folder)
    committed_grids, of_stacks = read_grids(folder), read_stacks(folder)
    if not results and not committed_grids and not of_stacks:
        raise UserError(f"no results in {folder}; publish one: espnet-ext report CONFIG --publish")
    drawn = set()
    for name in sorted({(r["dataset"], r["task"]) for r in results}):
        group = [r for r in results if (r["dataset"], r["task"]) == name]
        corpus = folder / "_".join(name)
        for metric in AXES:
            if plot_score_bytes(without(group), corpus / f"{metric}_bytes.svg", metric):
                drawn.add(corpus.name)
        for family in find_families(group):
            plot_family(family, corpus / family.plot)
    root = folder.resolve().parent
    papers = read_claims(folder)
    page = results_page(
        results, folder.resolve().name, drawn, measured, committed_grids, of_stacks, papers
    )
    _rewrite(root / "RESULTS.md", page)
    readme = root / "README.md"
    if readme.is_file():
        _rewrite(readme, readme_with_results(readme.read_text(encoding="utf-8"), results))


def _rewrite(page: Path, text: str) -> None:
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        print(f"{page}: up to date")
        return
    write_text(page, text)
    print(f"wrote {page}")

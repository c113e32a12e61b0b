"""Take layers out of a stack without retraining: curves of accuracy, and the smaller model.

With CONFIG, a probe (recipe: {task: cls}, encoder: stack) that stages 4 and 5 have made: layers go
one after the other by each order (backward, forward, block influence by cosine and by nearest
neighbours, as scored on one set), and what the probe decides is scored on another. Writes
exp/pruning/<name>.json and a plot. With --model, writes the model without some layers in its
own family's format; transformers or stock ESPnet loads it without this package.

Example:
  espnet-ext prune conf/train_whisper_base.yaml --score_set dev --set test --repeats 5
  espnet-ext prune --model exp/whisper_base --remove 3 4 --out exp/whisper_base_4
"""

import argparse
from pathlib import Path
from typing import Any

from espnet_ext.cli.similarity import (
    add_measure_arguments,
    check_measure,
    describe,
    finish,
    measure,
    named_here,
    rows_of,
)
from espnet_ext.errors import UserError, at_least
from espnet_ext.experiment import Experiment
from espnet_ext.results.stacks import Pruning

ORDERS = ("backward", "forward", "bi_cosine", "bi_knn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", nargs="?", help="training config of a probe")
    parser.add_argument(
        "--tags", nargs="+", help="probes that differ in the seed; default: the config's"
    )
    parser.add_argument("--variant", help="deployed form; default: the config's recipe: variant")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--score_set", default="dev", help="set that layers are scored on")
    parser.add_argument("--set", default="test", help="set that the probe is scored on")
    parser.add_argument("--metric", choices=("accuracy", "weighted_f1"), default="accuracy")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="draws for each probe")
    parser.add_argument("--protect", type=at_least(0), nargs="*", default=[], help="more layers")
    parser.add_argument("--name", help="of the result; default: from the tag and the set")
    add_measure_arguments(parser)
    parser.add_argument("--publish", action="store_true", help="copy into results/, RESULTS.md")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="publish what no commit describes"
    )
    model = parser.add_argument_group("write a smaller model instead")
    model.add_argument("--model", help="folder of a model, exp/<tag>, or hub:NAME")
    model.add_argument("--remove", type=int, nargs="+", metavar="LAYER", help="counted from 0")
    model.add_argument("--out", metavar="DIR", type=Path, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Draw the curves of a probe, or write a model without some layers.

    Raises:
        UserError: options that do not go together, a layer that cannot go, a probe that is not
            deployed, or a set that does not suit.
    """
    if args.config is None:
        for option in ("model", "remove", "out"):
            if getattr(args, option) is None:
                raise UserError(f"give a CONFIG, or --model, --remove and --out (no --{option})")
        _write(args)
        return
    if args.model or args.remove or args.out:
        raise UserError("--model, --remove and --out write a model: leave out CONFIG, or these")
    _curves(args)


def _write(args: argparse.Namespace) -> None:
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.encoders.pretrained.load import load_stack

        smaller = load_stack(args.model).remove(args.remove)
        smaller.save(args.out)
        again = load_stack(args.out)
    print(
        f"prune: {args.out}: {again.family}, {again.num_layers} layers left of the model's: "
        f"{', '.join(map(str, smaller.kept))}; {sum(p.numel() for p in again.parameters()):,} "
        "parameters"
    )


def _curves(args: argparse.Namespace) -> None:
    config = Experiment.load(args.config).config
    if config.recipe.task != "cls":
        raise UserError(
            f"{config.path}: prune scores a classifier; this is task {config.recipe.task}"
        )
    if args.score_set == args.set:
        raise UserError(f"--score_set and --set are both {args.set}; take different sets")
    tags = args.tags or [config.tag]
    variant = args.variant or config.recipe.variant
    score_rows, rows = rows_of(args.score_set), rows_of(args.set)
    check_measure(args, args.score_set, len(score_rows))
    references = _references(args.set, [name for name, _ in rows])
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.analysis.pruning import Curves, prune_probe
    curves = Curves(references, args.orders, args.metric, args.seed)
    model: dict[str, Any] = {}
    for tag in tags:
        folder = Path("exp") / tag / "deploy" / variant
        stack, protected = prune_probe(folder, score_rows, rows, curves, args)
        model = model or describe(str(folder / "stack"), stack) | {"path": f"exp/{tags[0]}"}
    record = _record(args, curves, tags, model, score_rows)
    finish(Pruning, record | {"protected": sorted(protected)}, args)


def _references(name: str, utterances: list[str]) -> list[str]:
    from espnet_ext.data.kaldi_dir import read_table

    labels = read_table(Path("data") / name / "label")
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


def _record(
    args: argparse.Namespace, curves: Any, tags: list[str], model: dict, score_rows: list
) -> dict[str, Any]:
    from espnet_ext.results.environment import environment

    words = f"--score_set {args.score_set} --set {args.set} --metric {args.metric}"
    words += f" --repeats {args.repeats} --k {' '.join(map(str, args.k))} --time {args.time}"
    words += f" --tags {' '.join(args.tags)}" if args.tags else ""
    words += f" --name {args.name}" if args.name else ""
    return {
        **named_here(args.name or f"{tags[0]}_{args.set}"),
        "model": model,
        **measure(args, score_rows),
        "probes": tags,
        "metric": args.metric,
        "score_set": args.score_set,
        "set": args.set,
        **curves.summary(),
        **environment(),
        "command": f"espnet-ext prune {args.config} {words}",
    }

"""How alike the layers of a model are: cosine, linear CKA, mutual nearest neighbours.

MODEL is a folder in transformers' format (wav2vec 2.0, HuBERT, WavLM, Whisper), exp/<tag> of an
encoder trained here, or hub:NAME. Run in a recipe's folder, after stage 1. Writes
exp/similarity/<name>.json and a heat map for each measure, with the blocks of layers that it
shows. Batches are averaged, so memory depends on the batch and its longest utterance, not on the
set. Where lengths differ much, --time flat shows the lengths too: long utterances are long
vectors in every layer. Then cut them with --seconds, or take --time mean.

Example:
  espnet-ext similarity downloads/whisper_base --set dev
  espnet-ext similarity exp/conformer_xs --set dev --time mean --batch_size 64 --k 2 4 8
"""

import argparse
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, at_least, nearest
from espnet_ext.files import sha256_file, write_json
from espnet_ext.results.stacks import BLOCK_RULE, MEASURES, Pruning, Similarity
from espnet_ext.validation import parse

K = (2, 4, 8, 16, 32, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("model", help="folder of a model, exp/<tag>, or hub:NAME")
    parser.add_argument("--set", default="dev", help="data set (default: dev)")
    parser.add_argument("--name", help="of the result; default: from model and set")
    parser.add_argument("--blocks", type=at_least(2), default=2, help="blocks to look for")
    add_measure_arguments(parser)
    parser.add_argument("--publish", action="store_true", help="copy into results/, RESULTS.md")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="publish what no commit describes"
    )


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how layers are compared."""
    parser.add_argument(
        "--k", type=at_least(1), nargs="+", default=list(K), help="nearest neighbours (2 ... 64)"
    )
    parser.add_argument("--batch_size", type=at_least(2), default=128, help="utterances compared")
    parser.add_argument("--batches", type=at_least(1), default=20, help="at most so many, drawn")
    parser.add_argument("--seed", type=at_least(0), default=1, help="of the draw")
    parser.add_argument(
        "--time", choices=("flat", "mean"), default="flat", help="frames in a row, or their mean"
    )
    parser.add_argument("--seconds", type=float, help="cut utterances off after so many")


def run(args: argparse.Namespace) -> None:
    """Compare the layers of one model.

    Raises:
        UserError: no such model or set, or a k that the batches are too small for.
    """
    rows = rows_of(args.set)
    check_measure(args, args.set, len(rows))
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.analysis.layers import compare_layers, draw_batches
        from espnet_ext.analysis.similarity import boundary
        from espnet_ext.encoders.pretrained.load import load_stack
        from espnet_ext.results.environment import environment

        stack = load_stack(args.model)
    batches = draw_batches(rows, args.batch_size, args.batches, args.seed)
    found = compare_layers(stack, batches, args.k, args.time, args.seconds)
    matrices = {"cosine": found.cosine, "cka": found.cka, "knn": found.mean_knn()}
    blocks = {name: boundary(matrices[name], args.blocks) for name in MEASURES}
    words = f"--set {args.set} --k {' '.join(map(str, args.k))} --time {args.time}"
    record: dict[str, Any] = {
        **named_here(args.name or f"{model_name(args.model)}_{args.set}"),
        "model": describe(args.model, stack),
        **measure(args, rows),
        "set": args.set,
        "utterances": found.utterances,
        "batches": found.batches,
        **{name: matrix.tolist() for name, matrix in matrices.items()},
        "knn_by_k": {str(k): matrix.tolist() for k, matrix in found.knn.items()},
        "rule": BLOCK_RULE,
        "blocks": {
            name: {"first_layers": cuts or None, "contrast": contrast}
            for name, (cuts, contrast) in blocks.items()
        },
        **environment(),
        "command": f"espnet-ext similarity {args.model} {words}",
    }
    finish(Similarity, record, args)


def rows_of(name: str) -> list[tuple[str, str]]:
    """The (utterance, audio path) of a set in data/.

    Raises:
        UserError: no such set.
    """
    from espnet_ext.data.kaldi_dir import audio_rows, data_sets

    scp = Path("data") / name / "wav.scp"
    if not scp.is_file():
        known = data_sets(Path("data"))
        raise UserError(f"no {scp}: no set {nearest(name, known)} (stage 1 makes the sets)")
    return audio_rows(scp.parent)


def check_measure(args: argparse.Namespace, name: str, utterances: int) -> None:
    """Refuse before the model is loaded what cannot be measured on a set."""
    size = min(args.batch_size, utterances)
    if max(args.k) >= size:
        raise UserError(
            f"--k {max(args.k)} neighbours in a batch of {size} utterances of {name}; choose a "
            "smaller k (--k) or a larger batch (--batch_size)"
        )
    if args.seconds is not None and not args.seconds > 0:
        raise UserError(f"--seconds must be above 0, not {args.seconds:g}")


def measure(args: argparse.Namespace, rows: list) -> dict[str, Any]:
    """How layers were compared, for the record."""
    return {
        "time": args.time,
        "seconds": args.seconds,
        "batch_size": min(args.batch_size, len(rows)),
        "k": sorted(set(args.k)),
    }


def model_name(model: str) -> str:
    """A name for files from what names a model."""
    return Path(model.removeprefix("hub:")).name


def named_here(name: str) -> dict[str, str]:
    """Whose record it is: the recipe's dataset and task, and a name for files."""
    from espnet_ext.results.run import recipe_names

    dataset, task = recipe_names(Path.cwd())
    return {"dataset": dataset, "task": task, "name": name}


def describe(path: str, stack: Any) -> dict[str, Any]:
    """What a model is, for the record; its hash is of its file of weights."""
    files = [*Path(path).glob("*.safetensors"), *Path(path).glob("deploy/*/model.pth")]
    files += Path(path).glob("model.pth")
    return {
        "path": path,
        "family": stack.family,
        "layers": stack.num_layers,
        "width": stack.width,
        "sha256": sha256_file(sorted(files)[0]) if files else "not measured",
    }


def finish[R: Similarity | Pruning](
    model: type[R], made: dict[str, Any], args: argparse.Namespace
) -> None:
    """Check, write, draw and print a record; publish it if asked."""
    from espnet_ext.results.pages.stacks import notes, stack_table
    from espnet_ext.results.pages.text import print_table
    from espnet_ext.results.plots.stacks import plot_stack
    from espnet_ext.results.publish import publish, publishing_root, refuse_uncommitted
    from espnet_ext.results.schema import SCHEMA_VERSION, as_json
    from espnet_ext.results.store import folder_of

    record = parse(model, {"schema_version": SCHEMA_VERSION, **made}, model.__name__.lower())
    kind = folder_of(record)
    results = publishing_root() / "results" if args.publish else None
    output = Path("exp") / kind / f"{record.name}.json"
    write_json(output, as_json(record))
    plot_stack(record, output.with_suffix(".png"))
    print_table(*stack_table(record))
    for line in notes(record):
        print(line)
    print(f"wrote {output} and {output.with_suffix('.png')}")
    if results is not None:
        if not args.allow_dirty:
            refuse_uncommitted(f"{kind} {record.name}", record.commit)
        publish(record, results)

"""Score hypotheses: WER and CER, BLEU and chrF, or weighted F1; intervals, paired tests.

Stage 7. Reads exp/<tag>/decode/<variant>/<method>/<set>/text and data/<set>/text, writes
exp/<tag>/score/<variant>/<method>/<set>.json and the alignment of every utterance
(<set>.ali.txt). A classifier is scored against data/<set>/label, translations against
data/<set>/text.<language> by sacreBLEU; they have no alignments. Or scores two plain files of
lines "id words".

Any two runs compare: --baseline names the other one, --out a folder for such scores. Differences
have bootstrap intervals, and differences of words NIST's matched-pairs test (MAPSSWE) too.

Example:
    espnet-ext score conf/train_hrf_conformer_xs.yaml --sets "test unseen" --baseline conformer_xs
    espnet-ext score conf/train_a_xs.yaml --baseline b_xs/merged --out exp/a_against_b
    espnet-ext score --ref data/test/text --hyp other/text --out scores/other
    espnet-ext score --ref data/test/text.en --hyp other/text --target en --out scores/other
"""

import argparse
from pathlib import Path

from espnet_ext.cli.options import add_variant, chosen_variants, set_names
from espnet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", help="training config, run in the recipe's folder")
    parser.add_argument(
        "--sets", type=set_names, help="names of sets (default: all that stage 6 decoded)"
    )
    parser.add_argument("--tag", help="name of the experiment (default: from the config's name)")
    add_variant(parser)
    parser.add_argument(
        "--baseline",
        metavar="TAG[/VARIANT]",
        help="run, or variant of a run, to compare with (default: the config's)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the scores: with plain files score.json and score.ali.txt; "
        "with a config, instead of exp/<tag>/score/<variant>",
    )
    plain = parser.add_argument_group("plain files instead of a config")
    plain.add_argument("--ref", type=Path, metavar="FILE", help="references, one 'id words' a line")
    plain.add_argument("--hyp", type=Path, metavar="FILE", help="hypotheses, one 'id words' a line")
    plain.add_argument(
        "--utt2spk", type=Path, metavar="FILE", help="speakers, one 'id speaker' a line"
    )
    plain.add_argument(
        "--baseline-hyp", type=Path, metavar="FILE", help="hypotheses to compare with"
    )
    plain.add_argument("--target", metavar="LANGUAGE", help="translations into it: BLEU and chrF")


def run(args: argparse.Namespace) -> None:
    """Score what the options name, and print the scores.

    Raises:
        UserError: options that do not go together, a missing file or stage output, or texts
            that do not pair.
    """
    from espnet_ext.results.pages.scores import score_lines
    from espnet_ext.stages.score import score_files, score_sets

    _check(args)
    if args.config is None:
        files = (args.ref, args.hyp, args.out, args.utt2spk, args.baseline_hyp)
        scores = iter([score_files(*files, target=args.target)])
    else:
        variants = chosen_variants(args)
        if args.out is not None and len(variants) > 1:
            raise UserError("--out is for one variant: give --variant")
        scores = (
            s for one in variants for s in score_sets(one, args.sets, args.baseline, args.out)
        )
    for scored in scores:
        print("\n".join([*scored.messages, *score_lines(scored.score)]))


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.config is None:
        plain = {"--ref": args.ref, "--hyp": args.hyp, "--out": args.out}
        missing = [option for option, value in plain.items() if value is None]
        if missing:
            raise UserError(f"give a CONFIG, or --ref, --hyp and --out ({missing[0]} is missing)")
        for option in ("sets", "variant", "tag", "baseline"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} needs a CONFIG; plain files have --baseline-hyp")
        return
    for option in ("ref", "hyp", "utt2spk", "baseline_hyp", "target"):
        if getattr(args, option) is not None:
            word = f"--{option.replace('_', '-')}"
            raise UserError(f"{word} is for plain files: leave out CONFIG, or {word}")

"""Score hypotheses: WER and CER, BLEU and chrF, or weighted F1; intervals, paired tests.

Stage 7. Reads exp/<tag>/decode/<variant>/<method>/<set>/text and data/<set>/text, writes
exp/<tag>/score/<variant>/<method>/<set>.json and, beside it, the alignment of every utterance
(<set>.ali.txt). A classifier is scored against data/<set>/label, translations against
data/<set>/text.<language> by sacreBLEU; they have no alignments. Or scores two plain files of
lines "id words".

Any two runs compare: --baseline names the other, --out a folder for scores that are not the
run's own. Differences have bootstrap intervals, and of words NIST's matched-pairs test (MAPSSWE).

Example:
    espnet-ext score conf/train_hrf_conformer_xs.yaml --sets "test unseen" --baseline conformer_xs
    espnet-ext score conf/train_a_xs.yaml --baseline b_xs/merged --out exp/a_against_b
    espnet-ext score --ref data/test/text --hyp other/text --out scores/other
    espnet-ext score --ref data/test/text.en --hyp other/text --target en --out scores/other
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.config.training import Config
from espnet_ext.errors import UserError, nearest
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, read_json, sha256_file, write_json, write_text

Names = tuple[str, str, str | None]  # set, method, baseline


@dataclass(frozen=True)
class Files:
    """What one set is scored from."""

    reference: Path
    hypothesis: Path
    utt2spk: Path | None = None
    baseline: Path | None = None  # hypotheses of the run that is compared with

    def read(self) -> tuple[Path, Path, Path | None, Path | None]:
        """All of them, as the readers take them."""
        return self.reference, self.hypothesis, self.utt2spk, self.baseline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", help="training config, run in the recipe's folder")
    parser.add_argument("--sets", help="names of sets (default: all that stage 6 decoded)")
    parser.add_argument("--tag", help="name of the experiment (default: from the config's name)")
    parser.add_argument("--variant", help="deployed form (default: the config's)")
    parser.add_argument(
        "--baseline",
        metavar="TAG[/VARIANT]",
        help="run, or form of a run, to compare with (default: the config's)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the scores: with plain files score.json and score.ali.txt; "
        "with a config, instead of exp/<tag>/score/<variant>",
    )
    plain = parser.add_argument_group("plain files instead of a config")
    plain.add_argument("--ref", metavar="FILE", help="references, one 'id words' a line")
    plain.add_argument("--hyp", metavar="FILE", help="hypotheses, one 'id words' a line")
    plain.add_argument("--utt2spk", metavar="FILE", help="speakers, one 'id speaker' a line")
    plain.add_argument("--baseline-hyp", metavar="FILE", help="hypotheses to compare with")
    plain.add_argument("--target", metavar="LANGUAGE", help="translations into it: BLEU and chrF")


def run(args: argparse.Namespace) -> None:
    """Score what the options name.

    Raises:
        UserError: options that do not go together, a missing file or stage output, or texts
            that do not pair.
    """
    plain = {"--ref": args.ref, "--hyp": args.hyp, "--out": args.out}
    if args.config is None:
        missing = [option for option, value in plain.items() if value is None]
        if missing:
            raise UserError(f"give a CONFIG, or --ref, --hyp and --out ({missing[0]} is missing)")
        for option in ("sets", "variant", "tag", "baseline"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} needs a CONFIG; plain files have --baseline-hyp")
        _score_files(args)
        return
    del plain["--out"]
    plain |= {"--utt2spk": args.utt2spk, "--baseline-hyp": args.baseline_hyp}
    plain |= {"--target": args.target}
    for option, value in plain.items():
        if value is not None:
            raise UserError(f"{option} is for plain files: leave out CONFIG, or {option}")
    config = Experiment.load(args.config, args.tag).config
    variant = args.variant or config.recipe.variant
    for method in config.recipe.decode:
        folder = config.exp / "decode" / variant / method
        for name in _sets(args, config, folder):
            _score_one(args, config, variant, method, name)


def _sets(args: argparse.Namespace, config: Config, folder: Path) -> list[str]:
    tag = "" if args.tag is None else f" --tag {args.tag}"
    stage = f"run stage 6: espnet-ext decode {args.config}{tag} --variant {folder.parent.name}"
    if args.sets is not None:
        names = args.sets.split()
        if not names:
            raise UserError("--sets is empty; name sets as in --sets 'test unseen'")
        target = config.recipe.target_file
        for name in names:
            if not Path("data", name, target).is_file():
                files = (path for path in Path("data").glob(f"*/{target}") if path.is_file())
                known = [path.parent.name for path in files]
                raise UserError(
                    f"no data/{name}/{target}: no set {nearest(name, known)} "
                    "(stage 1 makes the sets)"
                )
            if not (folder / name / "text").is_file():
                raise UserError(f"no hypotheses {folder / name / 'text'}; {stage} --sets {name}")
        return names
    names = sorted(path.parent.name for path in folder.glob("*/text"))
    if not names:
        raise UserError(f"no hypotheses in {folder}; {stage}")
    return names


def _score_one(
    args: argparse.Namespace, config: Config, variant: str, method: str, name: str
) -> None:
    recipe = config.recipe
    tag = args.baseline or recipe.baseline
    baseline = None
    if args.baseline in (config.tag, f"{config.tag}/{variant}"):
        raise UserError(
            f"--baseline {tag}: this is the run itself; another form of it is {config.tag}/VARIANT"
        )
    if tag is not None and tag != config.tag:
        baseline = _baseline_text(tag, variant, method, name, required=args.baseline is not None)
    files = Files(
        reference=Path("data", name, recipe.target_file),
        hypothesis=config.exp / "decode" / variant / method / name / "text",
        utt2spk=Path("data", name, "utt2spk"),
        baseline=baseline,
    )
    names = (name, method, tag if baseline else None)
    folder = config.exp / "score" / variant if args.out is None else Path(args.out)
    stem = folder / method / name
    if recipe.task == "cls":
        _score_classes(config, files, names, stem)
    elif recipe.task == "st":
        _score_translations(files, names, stem, str(recipe.target))
    else:
        _score_texts(files, names, stem)


def _baseline_text(tag: str, variant: str, method: str, name: str, required: bool) -> Path | None:
    """Find the baseline's hypotheses, of the form that ``baseline_form`` chooses."""
    from espnet_ext.score.pairs import baseline_form

    tag, _, named = tag.partition("/")
    root = Path("exp", tag)
    if not root.is_dir() and required:
        known = [path.name for path in Path("exp").glob("*") if (path / "decode").is_dir()]
        raise UserError(f"no baseline run {nearest(tag, known)} in exp/")
    found = sorted(root.glob(f"decode/*/{method}/{name}/text"))
    forms = {path.parts[-4]: path for path in found}
    form = baseline_form(forms, variant, named)
    if form is not None:
        return forms[form]
    if forms:
        made = ", ".join(forms)
        raise UserError(
            f"baseline {tag} was decoded as {made} but not as {named or variant}; decode that"
        )
    problem = f"baseline {tag} has no hypotheses {root}/decode/*/{method}/{name}/text"
    if required:
        raise UserError(f"{problem}; run stages 1 to 6 with its config first")
    print(f"{problem}: no paired test; run stages 1 to 6 with its config, then this again")
    return None


def _score_files(args: argparse.Namespace) -> None:
    reference = Path(args.ref)
    files = Files(
        reference=reference,
        hypothesis=Path(args.hyp),
        utt2spk=None if args.utt2spk is None else Path(args.utt2spk),
        baseline=None if args.baseline_hyp is None else Path(args.baseline_hyp),
    )
    is_text = reference.name == "text" or reference.stem == "text"
    name = reference.parent.name if is_text else reference.stem
    names = (name or "text", "files", args.baseline_hyp)
    if args.target is None:
        _score_texts(files, names, Path(args.out, "score"))
    else:
        _score_translations(files, names, Path(args.out, "score"), args.target)


def _score_texts(files: Files, names: Names, stem: Path) -> None:
    from espnet_ext.data.text import NORMALISATION
    from espnet_ext.results.pages.tables import score_line
    from espnet_ext.results.schema import SCHEMA_VERSION, SCORE_FILE
    from espnet_ext.score.pairs import read_pairs
    from espnet_ext.score.recognition import score_set
    from espnet_ext.score.significance.bootstrap import RESAMPLES, SEED
    from espnet_ext.score.significance.mapsswe import BUFFER
    from espnet_ext.score.wer import alignment_lines

    def score() -> tuple[dict[str, Any], dict[Path, str]]:
        pairs = read_pairs(files.reference, files.hypothesis, files.utt2spk, files.baseline)
        found, words = score_set(pairs, *names)
        lines = "\n".join(alignment_lines(pairs.ids, words)) + "\n"
        return found, {Path(f"{stem}.ali.txt"): lines}

    settings = [SCHEMA_VERSION, NORMALISATION, RESAMPLES, SEED, *names]
    settings += [str(files.utt2spk), str(files.baseline)]
    settings += [] if files.baseline is None else ["mapsswe", BUFFER]
    print(score_line(_score_and_write(stem, settings, files, SCORE_FILE, score)))


def _score_translations(files: Files, names: Names, stem: Path, target: str) -> None:
    import sacrebleu

    from espnet_ext.data.text import collapse_blanks
    from espnet_ext.results.pages.translation import score_line
    from espnet_ext.results.schema import SCHEMA_VERSION, TRANSLATION_SCORE_FILE
    from espnet_ext.score.pairs import read_pairs
    from espnet_ext.score.translation import RESAMPLES, SEED, score_translations

    def score() -> tuple[dict[str, Any], dict[Path, str]]:
        pairs = read_pairs(*files.read(), normalise=collapse_blanks)
        name, method, tag = names
        return score_translations(pairs, name, method, target, tag), {}

    settings = [SCHEMA_VERSION, sacrebleu.__version__, RESAMPLES, SEED, *names, target]
    settings += [str(files.utt2spk), str(files.baseline)]
    print(score_line(_score_and_write(stem, settings, files, TRANSLATION_SCORE_FILE, score)))


def _score_classes(config: Config, files: Files, names: Names, stem: Path) -> None:
    from espnet_ext.results.pages.classes import score_line
    from espnet_ext.results.schema import CLASS_SCORE_FILE, SCHEMA_VERSION
    from espnet_ext.score.classification import read_decisions, score_decisions, vote
    from espnet_ext.score.significance.bootstrap import RESAMPLES, SEED

    unit = "speaker" if config.recipe.vote else "utterance"
    name, method, tag = names

    def score() -> tuple[dict[str, Any], dict[Path, str]]:
        label, hypothesis, utt2spk, baseline = files.read()
        assert utt2spk is not None  # a config gives it
        decisions = read_decisions(
            label, hypothesis, utt2spk, Experiment.of(config).classes, baseline
        )
        if config.recipe.vote:
            decisions = vote(decisions)
        return score_decisions(decisions, name, method, unit, tag), {}

    settings = [SCHEMA_VERSION, RESAMPLES, SEED, name, method, unit, tag]
    print(score_line(_score_and_write(stem, settings, files, CLASS_SCORE_FILE, score)))


def _score_and_write(
    stem: Path,
    settings: list[Any],
    files: Files,
    check: Callable[[Any, str], None],
    score: Callable[[], tuple[dict[str, Any], dict[Path, str]]],
) -> dict[str, Any]:
    """Write <stem>.json and what ``score`` returns beside it, if they are not up to date."""
    from espnet_ext.results.schema import validate

    output = Path(f"{stem}.json")
    inputs = [path for path in files.read() if path is not None]
    stamp = Stamp(stem.with_name(f".{stem.name}.stamp"), settings, inputs)
    if stamp.is_current():
        print(f"{output}: up to date")
        return read_json(output)
    found, texts = score()
    # Stage 8 joins the score with files of other stages: they must be those that were read.
    found["inputs"] = {str(path): sha256_file(path) for path in inputs}
    validate(found, check, str(output))
    for path, text in texts.items():
        write_text(path, text)
    write_json(output, found)
    stamp.write([output, *texts])
    return found

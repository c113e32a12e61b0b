"""Stage 7: score the hypotheses of sets, or of two plain files, and write score files.

A score file holds the score and the SHA-256 of each file that was read. With that of a recogniser
goes the alignment of every utterance, <name>.ali.txt.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, nearest
from espnet_ext.experiment import Experiment
from espnet_ext.files import (
    DONE,
    Stamp,
    atomic_path,
    in_use,
    read_json,
    refuse_changed_output,
    score_stamp,
    sha256_file,
    write_json,
)
from espnet_ext.results.schema import SCHEMA_VERSION, Score, ScoreFile, as_json
from espnet_ext.run_files import (
    decoded_runs,
    decoded_variants,
    hypotheses_pattern,
    is_decoded,
)
from espnet_ext.score.pairs import baseline_variant, split_baseline
from espnet_ext.validation import parse

type Scores = tuple[dict[str, Any], list[Path]]  # a score, other files that were written


@dataclass(frozen=True)
class Job:
    """One set to be scored: the score file without suffix, names, and Kaldi tables to be read.

    Attributes:
        baselines: what is compared with: names of runs, and their hypotheses.
    """

    output: Path
    name: str
    method: str
    reference: Path
    hypothesis: Path
    utt2spk: Path | None = None
    baselines: dict[str, Path] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[Path, Path, Path | None, dict[str, Path]]:
        """The tables, in the order in which readers take them."""
        return self.reference, self.hypothesis, self.utt2spk, self.baselines


@dataclass(frozen=True)
class Scored:
    """A score, and what to say before it."""

    score: Score
    messages: list[str] = field(default_factory=list)


def score_sets(
    experiment: Experiment,
    sets: list[str] | None = None,
    baseline: str | None = None,
    out: Path | None = None,
) -> Iterator[Scored]:
    """Score every set that stage 6 decoded, by every method of the config.

    Args:
        experiment: the run.
        sets: names of sets; default: all that were decoded.
        baseline: TAG or TAG/VARIANT to compare with; default: those of the config that are decoded.
        out: folder for the scores; default: the experiment's.

    Raises:
        UserError: a set, hypotheses or a baseline are missing, or texts do not pair.
    """
    run, task = experiment.config.tag, experiment.recipe.task
    if baseline in (run, f"{run}/{experiment.variant}"):
        raise UserError(
            f"--baseline {baseline}: this is the run itself; another variant of it is {run}/VARIANT"
        )
    compared = experiment.recipe.compared_with(run, experiment.variant)
    itself = (run, f"{run}/{experiment.variant}")
    tags = [tag for tag in ([baseline] if baseline else compared) if tag not in itself]
    for method in experiment.recipe.decode:
        for name in _decoded_sets(experiment, method, sets):
            texts = {
                tag: _baseline(experiment, tag, method, name, baseline is not None) for tag in tags
            }
            messages = [
                f"{_none(experiment, tag, method, name)}: no paired test; run stages 1 to 6 with "
                "its config, then this again"
                for tag, found in texts.items()
                if found is None
            ]
            job = Job(
                output=(out or experiment.score_folder) / method / name,
                name=name,
                method=method,
                reference=experiment.references(name),
                hypothesis=_intact(experiment.decoded(method, name) / "text"),
                utt2spk=experiment.utt2spk(name),
                baselines={tag: _intact(found) for tag, found in texts.items() if found},
            )
            with in_use(experiment.folder) if out is None else contextlib.nullcontext():
                if task == "cls":
                    scored = _classes(job, experiment)
                else:
                    target = str(experiment.recipe.target) if task == "st" else None
                    scored = _texts(job, target)
            yield Scored(scored.score, messages + scored.messages)


def _intact(hypotheses: Path) -> Path:
    """Hypotheses that are as stage 6 wrote them.

    Raises:
        UserError: they were changed since.
    """
    refuse_changed_output(
        hypotheses, hypotheses.with_name(DONE), "run stage 6 again (espnet-ext decode)"
    )
    return hypotheses


def score_files(
    reference: Path,
    hypothesis: Path,
    out: Path,
    utt2spk: Path | None = None,
    baseline: Path | None = None,
    target: str | None = None,
) -> Scored:
    """Score two plain files of lines "id words", of translations into ``target`` if it is given.

    Writes <out>/score.json.

    Raises:
        UserError: a file is missing, or texts do not pair.
    """
    is_text = reference.name == "text" or reference.stem == "text"
    name = (reference.parent.name if is_text else reference.stem) or "text"
    baselines = {} if baseline is None else {str(baseline): baseline}
    files = (reference, hypothesis, utt2spk)
    return _texts(Job(out / "score", name, "files", *files, baselines), target)


def _decoded_sets(experiment: Experiment, method: str, sets: list[str] | None) -> list[str]:
    folder = experiment.decode_folder / method
    path, tag = experiment.config.path, experiment.config.tag
    option = "" if tag == path.stem.removeprefix("train_") else f" --tag {tag}"
    stage = f"run stage 6: espnet-ext decode {path}{option} --variant {experiment.variant}"
    if sets is None:
        sets = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("text"))
        if not sets:
            raise UserError(f"no hypotheses in {folder}; {stage}")
        return sets
    for name in sets:
        references = experiment.references(name)
        if not references.is_file():
            files = experiment.data.glob(f"*/{references.name}")
            known = nearest(name, [file.parent.name for file in files if file.is_file()])
            raise UserError(f"no {references}: no set {known} (stage 1 makes the sets)")
        hypotheses = experiment.decoded(method, name) / "text"
        if not hypotheses.is_file():
            raise UserError(f"no hypotheses {hypotheses}; {stage} --sets {name}")
    return sets


def _baseline(
    experiment: Experiment, named: str, method: str, name: str, required: bool
) -> Path | None:
    """The baseline's hypotheses, of the variant that ``baseline_variant`` chooses."""
    tag, variant_named = named_run(experiment, named)
    run = experiment.other_run(tag)
    if required and not is_decoded(run):
        found = decoded_runs(experiment.exp)
        runs = [path.relative_to(experiment.exp).as_posix() for path in found]
        raise UserError(f"no decoded baseline {nearest(named, runs)} in exp/")
    decoded = decoded_variants(run, method, name)
    chosen = baseline_variant(decoded, experiment.variant, variant_named)
    if chosen is not None:
        return decoded[chosen]
    if not required:
        return None
    if decoded:
        raise UserError(
            f"baseline {tag} was decoded as {', '.join(decoded)} but not as "
            f"{variant_named or experiment.variant}; decode that"
        )
    problem = _none(experiment, named, method, name)
    raise UserError(f"{problem}; run stages 1 to 6 with its config first")


def named_run(experiment: Experiment, named: str) -> tuple[str, str]:
    """Split TAG or TAG/VARIANT of a run of the recipe, which was decoded (``split_baseline``)."""
    return split_baseline(named, lambda tag: is_decoded(experiment.other_run(tag)))


def _none(experiment: Experiment, named: str, method: str, name: str) -> str:
    tag, variant = named_run(experiment, named)
    pattern = hypotheses_pattern(method, name).replace("*", variant or "*")
    return f"baseline {tag} has no hypotheses {experiment.other_run(tag) / pattern}"


def _texts(job: Job, target: str | None) -> Scored:
    """Score recognised texts or, with a target, translations."""
    if target is not None:
        return _translations(job, target)
    from espnet_ext.data.text import NORMALISATION
    from espnet_ext.score.pairs import read_pairs
    from espnet_ext.score.recognition import score_set
    from espnet_ext.score.significance.bootstrap import RESAMPLES, SEED
    from espnet_ext.score.significance.mapsswe import BUFFER
    from espnet_ext.score.wer import Aligned, alignment_lines

    def compute() -> Scores:
        pairs = read_pairs(*job.tables)
        alignments = Path(f"{job.output}.ali.txt")
        with atomic_path(alignments) as made, open(made, "w", encoding="utf-8") as stream:

            def write(first: int, words: Aligned) -> None:
                lines = alignment_lines(pairs.ids[first : first + len(words.edits)], words)
                stream.writelines(f"{line}\n" for line in lines)

            found = score_set(pairs, job.name, job.method, write)
        return found, [alignments]

    return _write(job, [NORMALISATION, RESAMPLES, SEED, BUFFER], compute)


def _translations(job: Job, target: str) -> Scored:
    import sacrebleu

    from espnet_ext.data.text import collapse_blanks
    from espnet_ext.score.pairs import read_pairs
    from espnet_ext.score.translation import RESAMPLES, SEED, score_translations

    def compute() -> Scores:
        pairs = read_pairs(*job.tables, normalise=collapse_blanks)
        return score_translations(pairs, job.name, job.method, target), []

    return _write(job, [sacrebleu.__version__, RESAMPLES, SEED, target], compute)


def _classes(job: Job, experiment: Experiment) -> Scored:
    from espnet_ext.score.classification import read_decisions, score_decisions, vote
    from espnet_ext.score.significance.bootstrap import RESAMPLES, SEED

    votes = experiment.recipe.vote
    unit = "speaker" if votes else "utterance"

    def compute() -> Scores:
        reference, hypothesis, utt2spk, baselines = job.tables
        assert utt2spk is not None  # a config gives it
        found = read_decisions(reference, hypothesis, utt2spk, experiment.classes, baselines)
        found = vote(found) if votes else found
        return score_decisions(found, job.name, job.method, unit), []

    return _write(job, [RESAMPLES, SEED, unit], compute)


def _write(job: Job, settings: list[Any], compute: Callable[[], Scores]) -> Scored:
    """Write the score file and what belongs to it, if they are not up to date."""
    *tables, baselines = job.tables
    output = Path(f"{job.output}.json")
    inputs = [path for path in (*tables, *baselines.values()) if path is not None]
    compared = [[tag, str(path)] for tag, path in baselines.items()]
    names = [job.name, job.method, str(job.utt2spk), compared]
    place = score_stamp(output)
    stamp = Stamp(place, [SCHEMA_VERSION, *settings, *names], inputs)
    if stamp.is_current():
        made = parse(ScoreFile, read_json(output), output)
        return Scored(made.score, [f"{output}: up to date"])
    score, written = compute()
    # Stage 8 joins the score with files of other stages: they must be those that were read.
    digests = {str(path): sha256_file(path) for path in inputs}
    made = parse(ScoreFile, {"score": score, "inputs": digests}, output)
    write_json(output, as_json(made))
    stamp.write([output, *written])
    return Scored(made.score)

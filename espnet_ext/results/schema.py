"""Schemas of score files and of the results of runs, as pydantic models.

A missing or unknown key is an error that names it. A number that was not measured is the text
``not measured``, never a guess, null or 0; null is a value that has no meaning here.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, Tag

from espnet_ext.results.comparison import Comparison
from espnet_ext.validation import Count, Interval, Items, Json, Named, Number, Strict, Text, or_word

NOT_MEASURED = "not measured"
SCHEMA_VERSION = 3
_WIDTH = 120  # of a line of JSON

type Measured[T] = Annotated[
    Annotated[T, Tag("[or not measured]")] | Annotated[Literal["not measured"], Tag("[word]")],
    or_word(NOT_MEASURED),
]


def _current(version: int) -> int:
    if version != SCHEMA_VERSION:
        raise ValueError(f"{version} is another version than {SCHEMA_VERSION}")
    return version


class Origin(Strict):
    """Where a committed file comes from."""

    schema_version: Annotated[int, AfterValidator(_current)]
    command: Text
    versions: Measured[Named[Text]]
    machine: Measured[Named[Json]]


class Record(Origin):
    """A result of a recipe."""

    dataset: Text
    task: Text
    commit: Text

    @property
    def recipe(self) -> str:
        """Folder of the results of its recipe."""
        return f"{self.dataset}_{self.task}"


# --- scores: one set, decoded by one method


class Value(Strict):
    """A metric of a set; the interval by speaker is None for one speaker, or none known."""

    value: Number
    interval: Interval | None  # None: nothing to draw from
    by_speaker: Interval | None = None


class Bootstrap(Strict):
    """How intervals were drawn."""

    resamples: Count
    seed: Count
    confidence: Number
    block: Count = 1  # utterances in a row that are drawn together


class Score(Strict):
    """Scores of any task."""

    set: Text
    method: Text
    speakers: Count | None
    bootstrap: Bootstrap
    metrics: Named[Value]  # by key of METRICS; the first is the one that matters most
    comparisons: list[Comparison]  # with each baseline, the one that matters most first

    @property
    def baseline(self) -> str | None:
        """The run that it was compared with first."""
        return self.comparisons[0].baseline if self.comparisons else None

    @property
    def main_metric(self) -> str:
        """Key of the metric that is compared first."""
        return next(iter(self.metrics))

    def compared(self, metric: str | None = None) -> Comparison | None:
        """The first comparison on a metric, or on the main one; None without a baseline."""
        return next(iter(self.all_compared(metric)), None)

    def all_compared(self, metric: str | None = None) -> list[Comparison]:
        """The comparisons on a metric, or on the main one, with each baseline."""
        wanted = metric or self.main_metric
        return [found for found in self.comparisons if found.metric == wanted]

    def other_value(self, pair: Comparison) -> float:
        """The value of the baseline that ``pair`` is with, when it was compared."""
        return self.metrics[pair.metric].value - pair.difference


class Errors(Strict):
    """Edits of a recogniser, counted."""

    substitutions: Count
    insertions: Count
    deletions: Count


class RecognitionScore(Score):
    """WER and CER."""

    task: Literal["asr"]
    normalisation: Text
    utterances: Count
    words: Count
    characters: Count
    errors: Named[Errors]  # by metric


class TranslationScore(Score):
    """BLEU and chrF."""

    task: Literal["st"]
    target: Text  # language
    utterances: Count
    words: Count  # of the references, cut at blanks
    brevity_penalty: Number
    precisions: Items[Number]
    signatures: Named[Text]  # sacreBLEU's, by metric


class Majority(Strict):
    """Always naming the commonest class."""

    name: Text
    weighted_f1: Number


class ClassValues(Strict):
    """How well one class is found."""

    f1: Number
    precision: Number
    recall: Number
    support: Count


class ClassScore(Score):
    """Weighted F1 and what belongs to it."""

    task: Literal["cls"]
    unit: Text  # utterance, or speaker where they vote
    decisions: Count
    classes: Items[Text]
    majority: Majority
    per_class: Named[ClassValues]
    confusion: Items[Items[Count]]  # rows: references


AnyScore = Annotated[RecognitionScore | TranslationScore | ClassScore, Field(discriminator="task")]


class ScoreFile(Strict):
    """File of stage 7: a score, and the SHA-256 of each file that was read."""

    score: AnyScore
    inputs: Named[Text]


# --- runs


class Average(Strict):
    """Which epochs ESPnet averaged, into which file."""

    file: Text
    epochs: Items[Count]


class Training(Strict):
    """How a run was trained."""

    seconds: Measured[Number]
    epochs: Measured[Count]
    peak_rss_mb: Measured[Number]
    device: Measured[Text]
    threads: Measured[Count]
    dtype: Measured[Text]
    average: Measured[Average]
    parameters: Measured[Named[Count]]  # in training, by part


class Decoding(Strict):
    """How a set was decoded."""

    method: Text
    set: Text
    rtf: Measured[Number]  # seconds of work per second of audio, the best of at most five rounds
    rtf_rounds: Measured[Items[Number]]
    rtf_utterances: Measured[Count]
    audio_seconds: Measured[Number]
    utterances: Measured[Count]
    peak_rss_mb: Measured[Number]
    threads: Measured[Count]
    device: Measured[Text]
    load: Measured[Number] = "not measured"  # processes that wanted to run on the machine meanwhile


class Result(Record):
    """One run: trained, deployed as one variant, decoded and scored."""

    tag: Text
    variant: Text
    checkpoint: Measured[Text]  # the file that was deployed
    encoder: Text
    config_path: Text
    seed: Measured[Count]
    parameters: Measured[Named[Count]]  # of the deployed model, by part
    bytes: Measured[Count]  # of the deployed model's file
    macs_per_second: Measured[Number]  # multiply-accumulates per second of audio
    training: Training
    decoding: Items[Decoding]
    scores: Items[AnyScore]
    config: Named[Json]

    @property
    def name(self) -> str:
        """The tag, and the variant where it is not the usual one."""
        return self.tag if self.variant == "merged" else f"{self.tag}_{self.variant}"

    @property
    def is_average(self) -> bool:
        """False if the deployed checkpoint is known not to be the training's average."""
        average = self.training.average
        return not isinstance(average, Average) or self.checkpoint in (average.file, NOT_MEASURED)

    @property
    def timed(self) -> Decoding:
        """The first decoding whose real-time factor was measured, or else the first."""
        measured = (log for log in self.decoding if not isinstance(log.rtf, str))
        return next(measured, self.decoding[0])

    def score(self, name: str, method: str) -> Score | None:
        """The score of a set, decoded by a method."""
        found = (s for s in self.scores if (s.set, s.method) == (name, method))
        return next(found, None)


# --- files


def as_json(model: BaseModel) -> dict[str, Any]:
    """Return a model as its file holds it: statistics that were not computed are left out."""
    return model.model_dump(mode="json", exclude_defaults=True)


def dumps(record: BaseModel) -> str:
    """Return a result as JSON; a part that fits into a line is written as one."""
    return f"{_dumps(as_json(record))}\n"


def _dumps(value: Any, indent: int = 0) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or indent + len(line) <= _WIDTH:
        return line
    inner = f"\n{' ' * (indent + 2)}"
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_dumps(item, indent + 2)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}\n{' ' * indent}}}"
    items = [_dumps(item, indent + 2) for item in value]
    if any(isinstance(item, dict | list) for item in value):
        return f"[{inner}{f',{inner}'.join(items)}\n{' ' * indent}]"
    return line  # a list of numbers, however long

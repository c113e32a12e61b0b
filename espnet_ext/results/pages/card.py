"""The card of a deployed model: what it is, what it cost, what it scored, how it was made."""

from typing import Any

import yaml

from espnet_ext.results.metrics import METRICS
from espnet_ext.results.pages.scores import comparison_lines, model_name, scores_table
from espnet_ext.results.pages.text import (
    bullets,
    duration,
    macs,
    markdown,
    megabytes,
    parameters,
    real_time_factor,
)
from espnet_ext.results.schema import Result

CARD, SCORES = "README.md", "scores.json"  # files in the deployed folder
# Of a score's task: that of Hugging Face's hub.
_TASKS = {
    "asr": "automatic-speech-recognition",
    "st": "automatic-speech-recognition",
    "cls": "audio-classification",
}


def model_card(result: Result, licence: str | None) -> str:
    """Return the card as Markdown, with the metadata of Hugging Face's hub.

    Args:
        result: the run.
        licence: what the recipe says of the licence of its data; None: nothing.
    """
    facts = {
        "parameters": parameters(result),
        "file of weights": f"{megabytes(result.bytes)} MB",
        "multiply-accumulates": f"{macs(result.macs_per_second)} for a second of audio",
        "real-time factor": f"{real_time_factor(result.decoding[0])}, one thread",
        "trained": f"`{result.command}` in `egs/{result.dataset}/{result.task}`, "
        f"{duration(result.training.seconds)}, commit {result.commit}",
        "encoder, form": f"{result.encoder}, {result.variant}",
    }
    lines = ["---", yaml.safe_dump(_metadata(result), sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {model_name(result)}", "", *bullets(facts), "", "## Scores", ""]
    lines += [markdown(*scores_table([result])), "", *comparison_lines([result]), ""]
    lines += ["## Data", "", f"Corpus: {result.dataset}. {licence or 'Licence: not stated.'}", ""]
    lines += ["## Use", "", "```bash", "espnet-ext transcribe . speech.wav", "```", ""]
    return "\n".join(lines)


def score_list(result: Result) -> list[dict[str, Any]]:
    """The main metric of each score, the first set and method first, as scores.json has it."""
    found = []
    for score in result.scores:
        value = score.metrics[score.main_metric]
        found.append(
            {
                "set": score.set,
                "method": score.method,
                "metric": score.main_metric,
                "direction": METRICS[score.main_metric].direction,
                "value": value.value,
                "interval": None if value.interval is None else list(value.interval),
            }
        )
    return found


def _metadata(result: Result) -> dict[str, Any]:
    task = _TASKS[result.scores[0].task]
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": f"{result.dataset} {score.set}", "type": result.dataset},
            "metrics": [
                {
                    "type": score.main_metric,
                    "value": float(
                        METRICS[score.main_metric].number(score.metrics[score.main_metric].value)
                    ),
                }
            ],
        }
        for score in result.scores
    ]
    return {
        "library_name": "espnet",
        "pipeline_tag": task,
        "tags": ["espnet", "espnet-ext", "speech"],
        "model-index": [{"name": model_name(result), "results": results}],
    }

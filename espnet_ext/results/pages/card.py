"""The card of a deployed model: what it is, what it cost, what it scored, how it was made."""

import re
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.languages import code_of
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
from espnet_ext.results.schema import Result, TranslationScore
from espnet_ext.run_files import LICENCE

# Of a score's task: that of Hugging Face's hub.
_TASKS = {
    "asr": "automatic-speech-recognition",
    "st": "automatic-speech-recognition",
    "cls": "audio-classification",
}
_CODE = re.compile(r"`([a-z]{2,3}(?:-[A-Za-z]+)*)`")  # of a language, in a recipe's README


def model_card(result: Result, languages: str | None, licence: str | None) -> str:
    """Return the card as Markdown, with the metadata of Hugging Face's hub.

    Args:
        result: the run.
        languages: what the recipe says of the languages of its speech; None: nothing.
        licence: what it says of the licence of its data; None: nothing.
    """
    target = _target(result)
    said = [f"Corpus: {result.dataset}.", languages or "Languages of the speech: not stated."]
    said += [] if target is None else [f"Translated into `{target}`."]
    said += [licence or "Licence: not stated."]
    facts = {
        "parameters": parameters(result),
        "file of weights": f"{megabytes(result.bytes)} MB",
        "multiply-accumulates": f"{macs(result.macs_per_second)} for a second of audio",
        "real-time factor": f"{real_time_factor(result.timed)}, one thread",
        "trained": f"`{result.command}` in `egs/{result.dataset}/{result.task}`, "
        f"{duration(result.training.seconds)}, commit {result.commit}",
        "encoder, variant": f"{result.encoder}, {result.variant}",
    }
    if result.config.get("frontend") == "ssl":
        conf = result.config["frontend_conf"]
        facts["features"] = (
            f"layer {conf['layer']} of `{Path(conf['folder']).name}`, frozen, in `features/`; "
            "in none of these figures"
        )
    spoken = _CODE.findall(languages or "")
    metadata = _metadata(result, [*spoken, *([] if target is None else [target])])
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {model_name(result)}", "", *bullets(facts), "", "## Scores", ""]
    lines += [markdown(*scores_table([result])), "", *comparison_lines([result]), ""]
    lines += ["## Data", "", " ".join(said), ""]
    lines += ["## Use", "", "```bash", "espnet-ext transcribe . speech.wav", "```", ""]
    return "\n".join(lines)


def licence_file(result: Result, licence: str | None) -> str:
    """Return the file that the card's ``license_link`` names, as Markdown."""
    readme = f"egs/{result.dataset}/{result.task}/README.md"
    lines = ["# Licence", "", "The recipe states no licence of these weights. Those of the data"]
    lines += ["and of a pretrained model that the training started from may bind their use."]
    says = "says:" if licence else "tells more."
    lines += [f"Of the data, `{readme}` (section Data, commit {result.commit}) {says}", ""]
    lines += [licence, ""] if licence else []
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


def _target(result: Result) -> str | None:
    """The language of the translations; None of another task."""
    return next((s.target for s in result.scores if isinstance(s, TranslationScore)), None)


def _metadata(result: Result, languages: list[str]) -> dict[str, Any]:
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
    codes = list(dict.fromkeys(map(code_of, languages)))
    return {
        **({"language": codes} if codes else {}),
        # The hub knows a licence by its id, or else by a name and a file.
        "license": "other",
        "license_name": "not-stated",
        "license_link": LICENCE,
        "library_name": "espnet",
        "pipeline_tag": task,
        "tags": ["espnet", "espnet-ext", "speech"],
        "model-index": [{"name": model_name(result), "results": results}],
    }

"""Stage 6: hypotheses of test sets by the deployed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ext.data.kaldi_dir import audio_inputs
from espnet_ext.data.segments import set_folder
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, in_use, sha256_file, write_json, write_text
from espnet_ext.results.schema import SCHEMA_VERSION


@dataclass(frozen=True)
class _Job:
    """One set to decode with one method."""

    method: str
    options: dict[str, Any]
    scp: Path
    folder: Path
    stamp: Stamp


def decode(experiment: Experiment, sets: Sequence[str], jobs: int, timed: bool = True) -> None:
    """Decode every set with every method of the config that is not up to date.

    Args:
        experiment: names the deployed form.
        sets: data sets.
        jobs: processes.
        timed: measure the real-time factor; not where other processes compete for the cores.

    Raises:
        UserError: the form is not deployed, no such set, or audio that cannot be read.
    """
    experiment.require_deployed()
    todo = []
    for method, options in experiment.recipe.decode.items():
        for name in sets:
            job = _job(experiment, method, options, name)
            if job.stamp.is_current():
                print(f"decode: {job.folder} is up to date")
            else:
                todo.append(job)
    if todo:
        with in_use(experiment.folder):
            _decode(experiment, todo, jobs, timed)


def _job(experiment: Experiment, method: str, options: Any, name: str) -> _Job:
    scp, folder = experiment.require_audio_list(name), experiment.decoded(method, name)
    inputs = [scp, experiment.weights, experiment.deployed / "config.yaml"]
    inputs += audio_inputs(set_folder(experiment.data, name))
    settings = {"schema": SCHEMA_VERSION, "method": method, "options": options}
    return _Job(method, options or {}, scp, folder, Stamp(folder / ".done.json", settings, inputs))


def _decode(experiment: Experiment, todo: Sequence[_Job], jobs: int, timed: bool) -> None:
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.decoder import Decoder
        from espnet_ext.bridge.inference import decode_set
        from espnet_ext.bridge.speech_input import SpeechInput
    source = SpeechInput.of(experiment)
    decoder: Decoder | None = None
    for job in todo:
        if decoder is None or decoder.method != job.method:
            decoder = Decoder(experiment.deployed, job.method, job.options, source)
        rows, summary = decode_set(decoder, job.scp, jobs, timed)
        write_text(job.folder / "text", "".join(f"{name} {text}\n" for name, text in rows))
        # Stage 8 joins this with files of other stages: they must be of the same model.
        made_by = {"model": sha256_file(experiment.weights), "options": job.options}
        write_json(job.folder / "decode.json", summary | made_by)
        job.stamp.write([job.folder / "text", job.folder / "decode.json"])
        speed = f", RTF {summary['rtf']:.4f}" if timed else ""
        if summary["too_short"]:
            speed += f"; {summary['too_short']} too short for a frame, with an empty text"
        print(f"decode: {job.folder}: {len(rows)} utterances{speed}")

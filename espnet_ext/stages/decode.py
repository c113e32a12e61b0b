"""Stage 6: hypotheses of test sets by the deployed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_ext.data.kaldi_dir import audio_inputs
from espnet_ext.data.parts import Part, begun, remove_parts
from espnet_ext.experiment import Experiment
from espnet_ext.files import (
    DECODED,
    DONE,
    Stamp,
    in_use,
    read_json,
    sha256_file,
    write_json,
    write_text,
)
from espnet_ext.results.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from espnet_ext.bridge.decoding.decoder import Decoded, Decoder

_PARTS = "parts"  # folder of a set's parts, while they are not joined
_ROWS = "decoded.json"  # of a part: what was decoded


@dataclass(frozen=True)
class _Job:
    """One set, or a part of it, to decode with one method."""

    method: str
    options: dict[str, Any]
    scp: Path
    folder: Path
    stamp: Stamp
    part: Part | None = None
    timed: bool = False


def decode(
    experiment: Experiment,
    sets: Sequence[str],
    jobs: int,
    timed: bool = True,
    part: Part | None = None,
    device: str = "cpu",
) -> None:
    """Decode every set with every method of the config that is not up to date.

    A set that was begun in parts is completed, part by part, and joined.

    Args:
        experiment: names the variant.
        sets: data sets.
        jobs: processes.
        timed: measure the real-time factor, on the first set; not where other processes compete for
            the cores.
        part: decode this part of every set only; a call without one joins them.
        device: torch's name of where the model computes.

    Raises:
        UserError: the variant is not deployed, no such set or device, or audio that cannot be read.
    """
    experiment.require_deployed()
    todo, leftovers = [], []
    for method, options in experiment.recipe.decode.items():
        for name in sets:
            jobs_of_set = [_job(experiment, method, options, name, timed=timed and name == sets[0])]
            if part is not None:
                jobs_of_set.append(_job(experiment, method, options, name, part))
            job = jobs_of_set[-1]
            if any(known.stamp.is_current() for known in jobs_of_set):
                if part is None and (parts := job.folder / _PARTS).exists():
                    leftovers.append(parts)
                print(f"decode: {job.folder} is up to date")
            elif part is not None:
                todo.append(job)
            else:
                todo += [*_parts(experiment, job, name), job]
    if part is not None:
        _decode(experiment, todo, jobs, device)  # other parts of it run at the same time
    elif todo or leftovers:
        with in_use(experiment.folder):
            for folder in leftovers:
                remove_parts(folder)
            _decode(experiment, todo, jobs, device)


def _job(
    experiment: Experiment,
    method: str,
    options: Any,
    name: str,
    part: Part | None = None,
    timed: bool = False,
) -> _Job:
    scp, folder = experiment.require_audio_list(name), experiment.decoded(method, name)
    inputs = [scp, experiment.weights, experiment.deployed / "config.yaml"]
    inputs += audio_inputs(experiment.set_folder(name))
    settings = {"schema": SCHEMA_VERSION, "method": method, "options": options}
    if part is not None:
        folder, settings["part"] = folder / _PARTS / str(part), str(part)
    stamp = Stamp(folder / DONE, settings, inputs)
    return _Job(method, options or {}, scp, folder, stamp, part, timed)


def _parts(experiment: Experiment, job: _Job, name: str) -> list[_Job]:
    """The parts that a set was begun in."""

    def of(part: Part) -> _Job:
        return _job(experiment, job.method, experiment.recipe.decode[job.method], name, part)

    return [of(part) for part in begun(job.folder / _PARTS, lambda p: of(p).stamp.is_current())]


def _decode(experiment: Experiment, todo: Sequence[_Job], jobs: int, device: str) -> None:
    if not todo:
        return
    from espnet_ext.bridge.muted import muted

    with muted():
        from espnet_ext.bridge.decoding.decoder import Decoder
        from espnet_ext.bridge.decoding.inference import decode_set
        from espnet_ext.bridge.decoding.loading import check_device
        from espnet_ext.bridge.deployed.speech_input import SpeechInput
    check_device(device)
    source = SpeechInput.of(experiment)
    decoder: Decoder | None = None
    parts: list[_Job] = []
    for job in todo:
        if decoder is None or decoder.method != job.method:
            decoder = Decoder(experiment.deployed, job.method, job.options, source, device)
        if job.part is not None:
            parts.append(job)
            if not job.stamp.is_current():
                found = decode_set(decoder, job.scp, jobs, job.part)
                write_json(job.folder / _ROWS, found)
                job.stamp.write([job.folder / _ROWS])
                print(f"decode: {job.folder}: {len(found)} utterances")
            continue
        found = _joined(parts, job) if parts else decode_set(decoder, job.scp, jobs)
        parts = []
        _write(experiment, job, decoder, found)


def _joined(parts: Sequence[_Job], job: _Job) -> list["Decoded"]:
    """The rows of all parts of a set, in the order of its list."""
    from espnet_ext.bridge.decoding.inference import rows_of

    rows = {row[0]: tuple(row) for part in parts for row in read_json(part.folder / _ROWS)}
    return [rows[name] for name, _ in rows_of(job.scp)]


def _write(experiment: Experiment, job: _Job, decoder: "Decoder", found: list["Decoded"]) -> None:
    from espnet_ext.bridge.decoding.inference import summary, time_set

    made = summary(found, decoder.device)
    speed = time_set(decoder, job.scp, found) if job.timed else {}
    write_text(job.folder / "text", "".join(f"{name} {text}\n" for name, text, *_ in found))
    # Stage 8 joins this with files of other stages: they must be of the same model.
    made_by = {"model": sha256_file(experiment.weights), "options": job.options}
    write_json(job.folder / DECODED, {**speed, **made, **made_by})
    job.stamp.write([job.folder / "text", job.folder / DECODED])
    remove_parts(job.folder / _PARTS)
    said = f", RTF {speed['rtf']:.4f}" if speed else ""
    if made["too_short"]:
        said += f"; {made['too_short']} too short for a frame, with an empty text"
    print(f"decode: {job.folder}: {len(found)} utterances{said}")

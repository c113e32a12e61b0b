"""What programs of benchmarks/ measured: their files in results/, checked, and their sections."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.results.pages.tables import duration, markdown
from espnet_ext.results.schema import (
    Check,
    count,
    interval,
    items,
    mapping,
    measured,
    named,
    number,
    optional,
    plain,
    read_validated,
    text,
)

WHOLE_JOB = mapping(
    command=text,
    exit_code=count,
    wall_seconds=number,
    peak_rss_mb=number,
    disk_mb=number,
    commit=text,
    cores=count,
    cpu=text,
)
TRAINING_STEP = mapping(
    size=text,
    encoder_conf=named(plain),
    batch=mapping(utterances=count, seconds_each=number),
    dtype=text,
    device=text,
    threads=count,
    torch=text,
    command=items(text),
    results=items(
        mapping(
            form=text,
            ratio=optional(number),  # null: the plain model
            parameters=count,
            milliseconds=items(number),  # a step, in every round
            to_plain=items(number),  # over that of the plain model in the same round
        )
    ),
)
_RATIO = mapping(ratio=number, interval=interval)
MERGED_LATENCY = mapping(
    seconds=number,
    calls=count,
    threads=count,
    cpu=text,
    torch=text,
    command=items(text),
    results=items(
        mapping(
            model=text,
            parameters=count,
            times=named(items(number)),  # seconds a call, in every round
            to_plain=named(_RATIO),  # over that of the plain model in the same round
        )
    ),
)
STACK_TIME = mapping(
    model=text,
    seconds=number,  # of speech
    batch=count,
    warmup=count,
    repeats=count,
    threads=count,
    device=text,
    systems=named(
        mapping(
            parameters=count,
            stack_parameters=count,  # behind the front end
            macs_per_second=count,
            rounds=items(number),  # seconds
            ms=number,
            stack_ms=number,
        )
    ),
    commit=text,
    versions=named(text),
    machine=named(plain),
    command=items(text),
)
NESTED_STEP = mapping(
    size=text,
    encoder_conf=named(plain),
    family=named(plain),  # depths, widths, bits
    batch=mapping(utterances=count, seconds_each=number),
    dtype=text,
    device=text,
    threads=count,
    torch=text,
    command=items(text),
    results=items(
        mapping(
            form=text,
            members=count,  # of a step
            of=count,
            milliseconds=items(number),  # a step, in every round
            to_largest=items(number),  # over that of the largest in the same round
            held_mb=number,  # for the backward pass
            peak_mb=measured(number),  # of a GPU
        )
    ),
)
RESIDUAL_FORMS = mapping(
    results=items(
        mapping(
            config=text,
            form=text,
            file_mb=number,
            load_s=number,
            offline_10s_ms=number,
            chunk_ms_p50=number,
            chunk_ms_p95=number,
            peak_rss_mb=number,
            rss_before_model_mb=number,
        )
    ),
    command=items(text),
    threads=count,
    cpu=text,
    torch=text,
)
TRANSDUCER_DECODING = mapping(
    espnet=items(number),  # seconds for the whole list, in every round
    ours=items(number),
    ratio=number,
    audio_seconds=number,
    utterances=count,
    tokens_per_second=number,
    search=mapping(espnet=items(number), ours=items(number)),
    batch=count,
    threads=count,
    command=items(text),
    cpu=text,
    torch=text,
)
# What the names of files begin with of which there are several.
_STACK_TIME = "stack_time."  # then the model
_NESTED_STEP = "nested_step."  # then the family
_DECODING = "transducer_decoding."  # then the model
_CHECKS: dict[str, Check] = {
    "whole_job.json": WHOLE_JOB,
    "hrf_training_step.json": TRAINING_STEP,
    "merged_latency.json": MERGED_LATENCY,
    "residual_forms.json": RESIDUAL_FORMS,
}
_SEVERAL: dict[str, Check] = {
    _STACK_TIME: STACK_TIME,
    _NESTED_STEP: NESTED_STEP,
    _DECODING: TRANSDUCER_DECODING,
}


def read_benchmarks(folder: Path) -> dict[str, Any]:
    """Read and validate the files of benchmarks that are in ``folder``, by name.

    Raises:
        UserError: a file is not JSON or does not fit.
    """
    checks = dict(_CHECKS)
    for prefix, check in _SEVERAL.items():
        checks |= {path.name: check for path in sorted(folder.glob(f"{prefix}*.json"))}
    return {
        name: read_validated(folder / name, check, "run the benchmark again")
        for name, check in checks.items()
        if (folder / name).is_file()
    }


def stack_times(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Of what ``read_benchmarks`` found, the times of stacks by the name of the model's file."""
    return _several(measured, _STACK_TIME)


def _several(measured: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix).removesuffix(".json"): record
        for name, record in measured.items()
        if name.startswith(prefix)
    }


def sections(measured: Mapping[str, Any], folder: str) -> list[str]:
    """Return the lines of RESULTS.md for validated benchmarks by name; see read_benchmarks."""
    lines = []
    if "whole_job.json" in measured:
        lines += ["", *_whole_job(measured["whole_job.json"], folder)]
    if "hrf_training_step.json" in measured:
        lines += ["", *_training_step(measured["hrf_training_step.json"])]
    if "merged_latency.json" in measured:
        lines += ["", *_merged_latency(measured["merged_latency.json"])]
    if times := stack_times(measured):
        lines += ["", *_stack_times(times)]
    if steps := _several(measured, _NESTED_STEP):
        lines += ["", *_nested_steps(steps)]
    if "residual_forms.json" in measured:
        lines += ["", *_residual_forms(measured["residual_forms.json"])]
    if decodings := _several(measured, _DECODING):
        lines += ["", *_decodings(decodings)]
    return lines


def _whole_job(measured: Mapping[str, Any], folder: str) -> list[str]:
    return [
        "## The main job whole",
        "",
        "From a fresh clone with no environment: installation, data, training and all the rest.",
        "",
        "```bash",
        f"python3 benchmarks/whole_job.py --json {folder}/whole_job.json -- {measured['command']}",
        "```",
        "",
        f"{duration(measured['wall_seconds'])} on {measured['cores']} cores of {measured['cpu']}; "
        f"at most {measured['peak_rss_mb']:,} MB resident in all processes together; "
        f"{measured['disk_mb']:,} MB of disk; commit {measured['commit']}.",
    ]


def _training_step(measured: Mapping[str, Any]) -> list[str]:
    program, *words = measured["command"]
    batch = measured["batch"]
    rows = [
        [
            row["form"],
            "" if row["ratio"] is None else f"{row['ratio']:g}",
            f"{row['parameters'] / 1e6:.2f} M",
            _spread(row["milliseconds"], ".0f"),
            _spread(row["to_plain"], ".2f"),
        ]
        for row in measured["results"]
    ]
    header = ["form", "ratio", "params in training", "ms a step, median (range)", "to plain"]
    return [
        "## A training step with HRF",
        "",
        "The product of the factors first, as here, or every frame through one factor after the "
        "other. The forms take turns; a ratio to plain is of two steps of the same round.",
        "",
        "```bash",
        f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}",
        "```",
        "",
        markdown(header, rows),
        "",
        f"Conformer {measured['size']}, {batch['utterances']} x {batch['seconds_each']:g} s a "
        f"batch, {measured['dtype']}; {measured['device']}, threads {measured['threads']}, "
        f"torch {measured['torch']}.",
    ]


def _merged_latency(measured: Mapping[str, Any]) -> list[str]:
    program, *words = measured["command"]
    rows = []
    for row in measured["results"]:
        plain = statistics.median(row["times"]["plain"])
        cells = [row["model"], f"{row['parameters']:,}", f"{1000 * plain:.2f}"]
        for form in ("plain again", "merged"):
            found = row["to_plain"][form]
            low, high = found["interval"]
            cells.append(f"{found['ratio']:.3f} ({low:.3f}-{high:.3f})")
        rows.append(cells)
    header = ["model", "params", "plain, ms (median)", "plain again, to plain", "merged, to plain"]
    rounds = len(measured["results"][0]["times"]["plain"])
    return [
        "## Latency of merged models",
        "",
        "An utterance through encoder and head. The forms take turns in one process; a ratio is of "
        "two times of the same round; the figure is their median with its 95 % interval by order "
        "statistics. The second plain model shows what noise there is.",
        "",
        "```bash",
        f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}",
        "```",
        "",
        markdown(header, rows),
        "",
        f"{measured['seconds']:g} s of features, {rounds} rounds, calls in each: "
        f"{measured['calls']}, {measured['threads']} thread; {measured['cpu']}, "
        f"torch {measured['torch']}.",
    ]


def _stack_times(times: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Time of stacks, whole and mimicked",
        "",
        "Random speech; the systems take turns, the first rounds are not counted; medians. The "
        "time behind the front end is the median of what a system takes longer than the front end "
        "alone in the same round.",
    ]
    header = ["system", "params", "behind the front", "MACs/s", "ms (range)", "to whole"]
    header += ["ms behind the front", "to whole"]
    for name, found in times.items():
        program, *words = found["command"]
        whole = found["systems"]["whole"]
        rows = [
            [
                system,
                f"{row['parameters']:,}",
                f"{row['stack_parameters']:,}",
                f"{row['macs_per_second'] / 1e6:,.1f} M",
                _spread([1e3 * seconds for seconds in row["rounds"]], ".1f"),
                f"{row['ms'] / whole['ms']:.3f}",
                f"{row['stack_ms']:.2f}",
                f"{row['stack_ms'] / whole['stack_ms']:.3f}",
            ]
            for system, row in found["systems"].items()
        ]
        lines += [
            *("", f"### {name}", "", "```bash"),
            f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}",
            *("```", "", markdown(header, rows), ""),
            f"{found['batch']} x {found['seconds']:g} s, {found['repeats']} rounds after "
            f"{found['warmup']}, {found['threads']} thread; {found['device']} of "
            f"{found['machine']['cpu']}; torch {found['versions']['torch']}; "
            f"commit {found['commit']}.",
        ]
    return lines


def _nested_steps(steps: Mapping[str, Any]) -> list[str]:
    lines = [
        "## A training step of a nested family",
        "",
        "Forward, losses with KL, backward, clipping, AdamW, on random features. The forms take "
        "turns; a ratio is of two steps of the same round. The largest is the plain encoder alone.",
    ]
    header = ["sub-networks", "of the family", "ms a step, median (range)", "to the largest"]
    header += ["held for backward, MB"]
    for name, found in steps.items():
        program, *words = found["command"]
        batch = found["batch"]
        rows = [
            [
                row["form"],
                f"{row['members']} of {row['of']}",
                _spread(row["milliseconds"], ".0f"),
                _spread(row["to_largest"], ".2f"),
                f"{row['held_mb']:.1f}",
            ]
            for row in found["results"]
        ]
        lines += [
            *("", f"### {name}", "", "```bash"),
            f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}",
            *("```", "", markdown(header, rows), ""),
            f"Conformer {found['size']}, {batch['utterances']} x {batch['seconds_each']:g} s a "
            f"batch, {found['dtype']}; {found['device']}, threads {found['threads']}, "
            f"torch {found['torch']}.",
        ]
    return lines


def _residual_forms(measured: Mapping[str, Any]) -> list[str]:
    program, *words = measured["command"]
    header = ["config", "form", "file MB", "load s", "10 s offline, ms", "chunk, ms p50", "p95"]
    header += ["peak MB", "of it before the model"]
    rows = [
        [
            row["config"].removeprefix("train_"),
            row["form"],
            *(f"{row[key]:.2f}" for key in ("file_mb", "load_s")),
            *(f"{row[key]:.1f}" for key in ("offline_10s_ms", "chunk_ms_p50", "chunk_ms_p95")),
            *(f"{row[key]:,.0f}" for key in ("peak_rss_mb", "rss_before_model_mb")),
        ]
        for row in measured["results"]
    ]
    return [
        "## Deployed forms of streaming models",
        "",
        "Random weights, each form in a process of its own; medians. File, loading and peak memory "
        "are the whole model's, the times its encoder's alone, without features and search. "
        "`shared` keeps what layers share once, the residuals apart; `merged` has plain layers.",
        "",
        "```bash",
        f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}",
        "```",
        "",
        markdown(header, rows),
        "",
        f"Threads {measured['threads']}; {measured['cpu']}, torch {measured['torch']}.",
    ]


def _decodings(decodings: Mapping[str, Any]) -> list[str]:
    header = ["model", "utterances", "batch", "ESPnet, s (range)", "ours", "ratio of medians"]
    header += ["of the search alone"]
    rows, commands = [], []
    for name, found in decodings.items():
        program, *words = found["command"]
        commands.append(f"python {shlex.join(['benchmarks/' + Path(program).name, *words])}")
        alone = [statistics.median(found["search"][key]) for key in ("espnet", "ours")]
        rows.append(
            [
                name,
                f"{found['utterances']} ({found['audio_seconds']:.0f} s)",
                str(found["batch"]),
                *(_spread(found[key], ".2f") for key in ("espnet", "ours")),
                f"{found['ratio']:.2f}",
                f"{alone[0] / alone[1]:.2f}",
            ]
        )
    one = next(iter(decodings.values()))
    return [
        "## Decoding a set with a transducer",
        "",
        "Greedy, ESPnet's own inference one utterance after another, and ours in batches, taking "
        "turns in one process; the texts are equal.",
        "",
        "```bash",
        *commands,
        "```",
        "",
        markdown(header, rows),
        "",
        f"Threads {one['threads']}; {one['cpu']}, torch {one['torch']}.",
    ]


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"

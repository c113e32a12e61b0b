"""Checks of what training and decoding read, in seconds: nothing is decoded."""

import os
from collections.abc import Iterable
from pathlib import Path

import soundfile

from espnet_ext.data.arks import ark_place
from espnet_ext.data.audio import SHORTEST, read_samples
from espnet_ext.data.kaldi_dir import read_data_dir, read_table
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError

CHUNK = 2000  # headers that a process checks at once, in about half a second


def check_inputs(directory: Path, scp: Path, sample_rate: int) -> None:
    """Check a data directory and the list of waves or matrices that is read for it.

    Args:
        directory: the data directory.
        scp: its wav.scp, or the feats.scp of arks made from it.
        sample_rate: Hz that the audio must have.

    Raises:
        UserError: the first fault; names the file and the utterance.
    """
    utterances = read_data_dir(directory)
    if scp.name == "wav.scp":
        check_headers(scp, ((u.id, u.audio) for u in utterances), sample_rate)
        return
    table = read_table(scp)
    remedy = f"remove {scp.parent} and run stage 2"
    for utterance in utterances:
        if utterance.id not in table:
            raise UserError(f"{scp}: {utterance.id} of {directory} is missing; {remedy}")
    if len(table) > len(utterances):
        raise UserError(f"{scp}: holds utterances that are not in {directory}; {remedy}")
    for name, where in table.items():
        try:
            ark_place(where, f"{scp}: {name}")
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from None


def check_headers(scp: Path, audio: Iterable[tuple[str, str]], sample_rate: int) -> None:
    """Compare the headers of (utterance, path) with mono audio of ``sample_rate`` Hz.

    All processors are used where there are thousands.
    """
    jobs = len(os.sched_getaffinity(0))
    shared = (str(scp), sample_rate)
    for _ in map_processes(_check_header, list(audio), jobs, CHUNK, shared):
        pass


def _check_header(of: tuple[str, int], row: tuple[str, str]) -> None:
    (scp, sample_rate), (utterance, path) = of, row
    if not Path(path).is_file():  # nor a pipe or a device, which would hang
        raise UserError(f"{scp}: {utterance}: no audio file {path}")
    try:
        header = soundfile.info(path)
    except (RuntimeError, OSError):
        raise UserError(f"{scp}: {utterance}: cannot decode {path}") from None
    found = f"{scp}: {utterance}: {path} has"
    if header.samplerate != sample_rate:
        raise UserError(f"{found} {header.samplerate} Hz, the config says {sample_rate} Hz")
    if header.channels != 1:
        raise UserError(f"{found} {header.channels} channels, expected 1")
    if header.frames < SHORTEST * sample_rate:
        raise UserError(f"{found} {header.frames} samples, less than {SHORTEST} s")
    if header.subtype in ("FLOAT", "DOUBLE"):  # integers are finite and in range
        read_samples(Path(path), f"{scp}: {utterance}")

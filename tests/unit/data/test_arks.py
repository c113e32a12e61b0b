"""Places in arks: no command runs, and values are finite matrices."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.data.arks import ark_place, read_matrix
from espnet_ext.data.inputs import check_inputs
from espnet_ext.data.kaldi_dir import Utterance, write_data_dir
from espnet_ext.errors import UserError


@pytest.mark.parametrize(
    "place",
    ["touch ran; cat y |", "| touch ran", "touch ran |:5", "-:0", "a.ark", "a.ark:-1", "no.ark:0"],
)
def test_an_ark_is_a_file_and_an_offset(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for name in ("a.ark", "touch ran |", "touch ran; cat y |", "-"):  # files of that name too
        Path(name).write_bytes(b"\0" * 9)
    for read in (ark_place, read_matrix):
        with pytest.raises(UserError, match=r"^u1: "):
            read(place, "u1")
    assert not Path("ran").exists()


def test_decode_and_train_refuse_a_command_in_feats_scp(tmp_path, monkeypatch):
    from espnet_ext.bridge.deployed.speech_input import SpeechInput

    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(1600), 16000)
    write_data_dir("data/x", [Utterance("u1", "s", "a", "a.wav", 0.1)])
    Path("feats.scp").write_text("u1 touch ran; cat a.wav |\n")
    with pytest.raises(UserError, match="expected 'ark:offset'"):
        check_inputs(Path("data/x"), Path("feats.scp"), 16000)
    with pytest.raises(UserError, match="expected 'ark:offset'"):
        SpeechInput(16000, from_arks=True).read("u1", "touch ran; cat a.wav |", None)
    assert not Path("ran").exists()


def test_values_of_an_ark_are_finite_matrices(tmp_path):
    import kaldiio

    for name, matrix in (("nan", np.full((3, 2), np.nan)), ("vector", np.zeros(3))):
        path = tmp_path / f"{name}.ark"
        kaldiio.save_ark(str(path), {"u": matrix.astype(np.float32)})
        with pytest.raises(UserError, match="no matrix of finite numbers"):
            read_matrix(f"{path}:2", "u")

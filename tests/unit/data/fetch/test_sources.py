"""Sources of pretrained models: the first that is at hand is taken, and its digest compared."""

import hashlib

import pytest

from espnet_ext.data.fetch import sources
from espnet_ext.data.fetch.sources import Source, take_first
from espnet_ext.errors import UserError


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a model; its digest."""
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder, hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch, model):
    """The hub's cache, which has the model as some/name."""
    from transformers.utils import hub

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub/models--some--name"
    snapshot = repo / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    for file in model[0].iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


def test_the_first_source_at_hand_is_taken(tmp_path, model, cache, monkeypatch):
    folder, digest = model
    monkeypatch.setattr(sources, "prepare", lambda *_: pytest.fail("nothing is to be fetched"))
    out = tmp_path / "downloads/tiny"
    words = [f"{tmp_path}/away", f"hub:some/other@{digest}", "hub:some/name", str(folder)]
    assert take_first(words, out) == f"{out}: {cache}"
    assert (out / "model.safetensors").read_bytes() == b"weights"
    # What is there stays, whatever the order.
    assert take_first([str(folder)], out) == f"{out}: {cache}"
    out.unlink()
    assert take_first([f"{folder}@{digest}", "whisper_tiny.en"], out) == f"{out}: {folder}"


def test_packages_are_the_last_resort_and_a_users_folder_stays(tmp_path, model, monkeypatch):
    made = []
    monkeypatch.setattr(sources, "prepare", lambda wheels, out, _: made.append(out) or True)
    out = tmp_path / "downloads/tiny"
    assert take_first([f"{tmp_path}/away", "whisper_tiny.en"], out) == f"{out}: written"
    assert made == [out]
    assert take_first(["whisper_tiny.en"], model[0]) == f"{model[0]}: a folder that was there"
    assert made == [out]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("whisper_tiny", "unknown source 'whisper_tiny'; give a folder with a / in it, hub:NAME"),
        ("hub:a/b@12", "after @ comes a SHA-256"),
        ("/models/x@ABC", "after @ comes a SHA-256"),
    ],
)
def test_a_word_that_is_no_source_is_one_line(word, message):
    with pytest.raises(UserError, match=message):
        Source.parse(word)


def test_other_weights_and_no_source_at_hand_are_one_line(tmp_path, model):
    folder, digest = model
    out = tmp_path / "downloads/tiny"
    with pytest.raises(UserError, match="another SHA-256"):
        take_first([f"{folder}@{digest[::-1]}"], out)
    with pytest.raises(UserError, match=r"no model at hand for .*tiny: .*away; fetch one"):
        take_first([f"{tmp_path}/away"], out)
    assert not out.exists() and not out.is_symlink()

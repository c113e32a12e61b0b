"""The page in headless Chromium, and its example in Node.js, with npm's ONNX Runtime."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ext.bridge.deployed.bundle import Bundle
from espnet_ext.export import site
from espnet_ext.export.family import export_family
from espnet_ext.export.folder import export
from tests.fixtures import families, probe, streams

pytestmark = pytest.mark.browser
VARIANTS = ("1L-24-4b", "3L-64-8b")
STREAM, FAMILY, ATTENTION, CLASSES = "transducer", "family", "attention", "classes"


@pytest.fixture(scope="module")
def wave(tmp_path_factory) -> Path:
    """Two seconds without a pause, whole frames of the page."""
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    rate = families.RATE
    samples = families.wave(2.0, 1)[: 2 * rate]
    soundfile.write(path, samples / np.abs(samples).max() * 0.5, rate, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wave) -> Path:
    """The demo of two members of a family, and of a transducer that streams."""
    root = tmp_path_factory.mktemp("recipe")
    deployed, models = families.deployed(root, VARIANTS), []
    for variant in VARIANTS:
        models.append(root / "onnx" / variant)
        bundle, samples = Bundle.of_folder(deployed / variant), soundfile.read(wave)[0]
        export(bundle, models[-1], [samples.astype(np.float32)], products="float32")
    with pytest.MonkeyPatch.context() as patch:
        (root / "stream").mkdir()
        patch.chdir(root / "stream")
        streams.make(root / "stream", variants=("merged",))
    bundle = Bundle.of_folder(root / "stream/exp/tiny/deploy/merged")
    models.append(root / "onnx" / STREAM)
    export(bundle, models[-1], [samples.astype(np.float32)], products="float32")
    models.append(root / "onnx" / ATTENTION)
    with pytest.MonkeyPatch.context() as patch:  # texts of random models repeat themselves
        patch.setattr("espnet_ext.export.folder.LEAST_EQUAL", 0.0)
        heard = [samples.astype(np.float32)]
        bundle = Bundle.of_folder(deployed / VARIANTS[1])
        export(bundle, models[-1], heard, products="float32", search="attention")
    classifier = probe.make(root / "probe")
    probe.train(classifier)
    models.append(root / "onnx" / CLASSES)
    probe.run(classifier, "export", probe.CONFIG, "--exact", "--out", str(models[-1]))
    bundles = {variant: Bundle.of_folder(deployed / variant) for variant in VARIANTS}
    models.append(root / "onnx" / FAMILY)
    export_family(bundles, models[-1], heard, products="float32")
    site.write_site(models, root / "site")
    return root / "site"


def python_text(folder: Path, variant: str, wave: Path) -> str:
    script = [sys.executable, str(folder / "models" / variant / "transcribe.py"), str(wave)]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("variant", (*VARIANTS, STREAM, ATTENTION, CLASSES))
def test_node_finds_pythons_text(folder, variant, wave):
    words = ["node", str(folder / "transcribe.js"), str(folder / "models" / variant), str(wave)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == python_text(folder, variant, wave) != ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_node_finds_the_text_of_a_familys_member(folder, variant, wave):
    family = folder / "models" / FAMILY
    words = ["node", str(folder / "transcribe.js"), str(family), "--member", variant, str(wave)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == python_text(folder, variant, wave) != ""
    words[4] = "9L-64-8b"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no member 9L-64-8b" in done.stderr


def until(found: Callable[[], object], seconds: float = 60) -> object:
    """The first true value of a function."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "the page does not answer"
        time.sleep(0.2)
    return value


def test_the_page_transcribes_files_and_the_microphone_with_each_model(folder, wave):
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for word in (
        *("headless=new", "no-sandbox", "disable-dev-shm-usage"),
        *("use-fake-ui-for-media-stream", "use-fake-device-for-media-stream"),
        f"use-file-for-fake-audio-capture={wave}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    with site.server(folder, 0) as pages, webdriver.Chrome(options, service) as browser:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{pages.server_address[1]}/")

        def text(name: str) -> str:
            return browser.find_element(By.ID, name).text

        listed = json.loads((folder / "models.json").read_text())
        names = [one["name"] for one in listed]
        members = [f"{FAMILY}, {variant}" for variant in VARIANTS]
        assert sorted(names) == sorted((*VARIANTS, STREAM, ATTENTION, CLASSES, *members))
        assert [one["bytes"] for one in listed] == sorted(one["bytes"] for one in listed)
        for place, variant in reversed(list(enumerate(names))):
            slider = "const s = document.getElementById('size');"
            if place < len(names) - 1:
                browser.execute_script(f"{slider} s.value = {place}; s.oninput(); s.onchange();")
            assert variant in text("model")
            until(lambda: "Loaded" in text("status"))
            clear = "document.getElementById('text').textContent = ''"
            browser.execute_script(clear)
            browser.find_element(By.ID, "file").send_keys(str(wave))
            alone = variant.removeprefix(f"{FAMILY}, ")
            assert until(lambda: text("text")) == python_text(folder, alone, wave)
            if variant in (STREAM, VARIANTS[0]):
                browser.execute_script(clear)
                button = browser.find_element(By.ID, "listen")
                button.click()
                until(lambda: text("partial"))
                button.click()
                until(lambda: text("text"))
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
        pages.shutdown()

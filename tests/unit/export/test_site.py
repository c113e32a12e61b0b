"""The page of exported models: its folder, its server, and its scripts in Node.js."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from espnet_ext.cli.main import main
from espnet_ext.data.fetch import npm
from espnet_ext.errors import UserError
from espnet_ext.export import site
from espnet_ext.export.runtime import run_onnx, run_search
from espnet_ext.export.runtime.family_weights import assembled
from espnet_ext.files import sha256_file
from espnet_ext.formats.digests import digests
from tests.fixtures import families

WEB = Path(site.__file__).with_name("web")
node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


def exported(folder: Path, size: int) -> Path:
    """A folder as ``export`` writes it; its graph is nothing."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x" * size)
    (folder / "tokens.txt").write_text("<blk> 0\n\u2581a 1\nb c 2\n<0xC3> 3\n<0xA9> 4\n")
    settings = {"kind": "ctc", "rate": 16000, "sha256": digests(folder)}
    (folder / "model.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package with the members that are unpacked; it is the one that is expected."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "other"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(npm, "SHA256", sha256_file(path))
    return path


def test_the_folder_holds_page_runtime_and_models_by_size(tmp_path, package):
    models = [exported(tmp_path / name, size) for name, size in (("large", 900), ("small", 7))]
    out = tmp_path / "site"
    for _ in range(2):  # it replaces itself
        site.write_site(models, out, package)
    listed = json.loads((out / "models.json").read_text())
    assert [one["name"] for one in listed] == ["small", "large"]
    for one in listed:
        folder = out / one["folder"]
        assert sum(path.stat().st_size for path in folder.iterdir()) == one["bytes"]
    assert (out / "ort.js").read_text() == "ort.wasm.bundle.min.mjs"
    assert (out / "ort.wasm").read_text() == "ort-wasm-simd-threaded.wasm"
    assert {path.name for path in WEB.iterdir()} < {path.name for path in out.iterdir()}


def test_members_of_a_family_are_listed_and_their_weights_computed(tmp_path, package):
    family = exported(tmp_path / "family", 5)
    (family / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    recipe = {"from": [0, "float32", [4]], "part": [2], "at": 0, "bytes": 8}
    members = {}
    for name, recipes, size in (("large", [], 40), ("small", [recipe], 30)):
        (family / f"{name}.weights.json").write_text(json.dumps(recipes))
        computed = hashlib.sha256(assembled(family, name)).hexdigest()
        members[name] = {"bytes": size, "files": {}, "computed": computed}
    settings = {"kind": "ctc", "rate": 16000, "members": members}
    (family / "model.json").unlink()
    settings["sha256"] = digests(family)
    (family / "model.json").write_text(json.dumps(settings))
    out = tmp_path / "site"
    site.write_site([family], out, package)
    found = [
        (one["name"], one["member"], one["folder"], one["bytes"])
        for one in json.loads((out / "models.json").read_text())
    ]
    place = "models/family"
    assert found == [
        ("family, small", "small", place, 30),
        ("family, large", "large", place, 40),
    ]
    computed = np.fromfile(out / place / "small.weights.bin", np.float32)
    assert computed.tolist() == [0, 1]
    assert (out / place / "large.weights.bin").read_bytes() == b""


def test_it_is_served_on_this_machine_alone(tmp_path, package):
    site.write_site([exported(tmp_path / "one", 5)], tmp_path / "site", package)
    with site.server(tmp_path / "site", 0) as pages:
        host, port = pages.server_address[:2]
        assert host == "127.0.0.1"
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        for name, kind in (("", "text/html"), ("page.js", "text/javascript")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}") as reply:
                assert reply.headers.get_content_type() == kind
        with pytest.raises(UserError, match=f"--port {port}: .*choose another"):
            site.server(tmp_path / "site", int(port))
        pages.shutdown()


def test_what_cannot_be_shown_is_one_line_and_writes_nothing(tmp_path, package, monkeypatch):
    model, out = exported(tmp_path / "one", 5), tmp_path / "site"

    def refused(*models: Path) -> str:
        with pytest.raises(UserError) as caught:
            site.write_site(models, out, package)
        assert not out.exists()
        return str(caught.value)

    with pytest.raises(UserError, match="site lies in a model's folder"):
        site.write_site([model], model / "site", package)
    assert "two models are named one" in refused(model, exported(tmp_path / "x/one", 5))
    assert "not the settings of an exported model" in refused(tmp_path / "x")
    (model / "model.onnx").write_bytes(b"other")
    assert "model.onnx was changed" in refused(model)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine exists and is no demo"):
        site.write_site([model], tmp_path / "mine", package)
    (tmp_path / "mine/models.json").write_text("[]")
    (tmp_path / "mine/thesis.pdf").touch()
    with pytest.raises(UserError, match=r"holds thesis\.pdf, which no demo has"):
        site.write_site([model], tmp_path / "mine", package)
    assert (tmp_path / "mine/thesis.pdf").exists()
    with pytest.raises(UserError, match="is not onnxruntime-web-"):
        npm.fetch(tmp_path, model / "model.onnx")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no npm here .* --package FILE"):
        npm.fetch(tmp_path)


def test_a_package_of_another_content_is_refused_and_not_kept(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/npm"
    fake.write_text(f'#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\necho x > "$1/{npm.FILE}"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(UserError, match="another SHA-256"):
        npm.fetch(tmp_path)
    fake.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match="npm cannot fetch onnxruntime-web"):
        npm.fetch(tmp_path)
    assert not (tmp_path / npm.FILE).exists()


def test_the_verb_writes_the_folder(tmp_path, package, monkeypatch, capsys):
    model, out = exported(tmp_path / "one", 5), tmp_path / "site"
    words = ["demo", model, "--out", out, "--package", package, "--write_only"]
    monkeypatch.setattr("sys.argv", ["espnet-ext", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"demo: {out}: written\n"
    assert (out / "models/one/model.json").is_file()


def in_node(tmp_path: Path, script: str, given: object) -> object:
    """What a script prints as JSON; ``given`` is its input."""
    path = tmp_path / "script.mjs"
    path.write_text(script.replace("WEB", WEB.as_uri()))
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@node
def test_the_page_ends_loops_and_joins_tokens_as_the_script_does(tmp_path):
    given = families.looping(5, 200)
    symbols = {0: "", 1: "\u2581a", 2: "b c", 3: "<0xC3>", 4: "<0xA9>"}
    texts = [[1, 2, 1], [1, 3, 4, 2], [3, 1], [4, 3, 4], []]
    script = """
import { Model, loop } from "WEB/model.js";
import { readFileSync } from "node:fs";
const [loops, symbols, texts] = JSON.parse(readFileSync(0));
const model = new Model();
model.symbols = new Map(Object.entries(symbols).map(([id, text]) => [+id, text]));
const found = [loops.map((tokens) => loop(tokens)), texts.map((tokens) => model.text(tokens))];
console.log(JSON.stringify(found));
"""
    loops, found = in_node(tmp_path, script, [given, symbols, texts])
    assert loops == [run_search.loop(tokens) for tokens in given]
    assert 20 < np.count_nonzero(loops) < 180
    ours = run_onnx.Model.__new__(run_onnx.Model)
    ours.symbols = symbols
    assert found == [ours.text(tokens) for tokens in texts]
    assert "\u00e9" in found[1] and "\ufffd" in found[2]


@node
def test_the_page_cuts_at_pauses(tmp_path):
    """Two words of 1 s and 0.5 s with 0.8 s between, in noise; blocks of 128 as browsers give."""
    generator, rate = np.random.default_rng(6), 16000
    wave = 0.001 * generator.standard_normal(5 * rate)
    for start, end in ((1.0, 2.0), (2.8, 3.3)):
        word = slice(int(start * rate), int(end * rate))
        wave[word] += 0.1 * generator.standard_normal(word.stop - word.start)
    script = """
import { Segmenter } from "WEB/segments.js";
import { readFileSync } from "node:fs";
const wave = Float32Array.from(JSON.parse(readFileSync(0)));
const found = [128, wave.length].map((block) => {
  const segmenter = new Segmenter(16000);
  const lengths = [];
  for (let t = 0; t < wave.length; t += block)
    segmenter.push(wave.slice(t, t + block)).forEach((one) => lengths.push(one.length));
  return [lengths, segmenter.end()?.length ?? null];
});
console.log(JSON.stringify(found));
"""
    by_blocks, whole = in_node(tmp_path, script, wave.tolist())
    assert by_blocks == whole
    lengths, rest = whole
    # 0.3 s before, the word, 0.6 s after; between the words there is less than both.
    assert [length / rate for length in lengths] == pytest.approx([1.9, 1.3], abs=0.05)
    assert rest is None

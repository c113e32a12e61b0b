"""The verb `score`, on texts made on the spot."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.cli import score as verb
from espnet_ext.errors import UserError
from espnet_ext.results.schema import RecognitionScore, ScoreFile
from espnet_ext.validation import read_model
from tests.fixtures.texts import sentences, spoilt, write_table


def parse(*arguments: str):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args(list(arguments))


def read(path) -> RecognitionScore:
    """The score in a file, which must fit its schema."""
    return read_model(ScoreFile, Path(path), "score again").score


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe folder with two sets, a run and its baseline, both decoded."""
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir()
    Path("conf/train_hrf_xs.yaml").write_text("encoder: conformer\nrecipe: {baseline: base_xs}\n")
    for seed, name in enumerate(("test", "unseen")):
        references = sentences(30, seed)
        ids = [f"{name}-{i:03}" for i in range(30)]
        write_table(Path("data", name, "text"), ids, references)
        write_table(Path("data", name, "utt2spk"), ids, [f"s{i % 5}" for i in range(30)])
        for tag, share in (("hrf_xs", 0.2), ("base_xs", 0.5)):
            write_table(
                Path("exp", tag, "decode/merged/ctc_greedy", name, "text"),
                ids,
                spoilt(references, share, seed + 7),
            )
    return tmp_path


def test_verb_scores_sets_and_is_then_up_to_date(recipe, capsys):
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test unseen"))
    folder = Path("exp/hrf_xs/score/merged/ctc_greedy")
    assert sorted(p.name for p in folder.glob("[!.]*")) == [
        "test.ali.txt",
        "test.json",
        "unseen.ali.txt",
        "unseen.json",
    ]
    score = read(folder / "unseen.json")
    assert score.baseline == "base_xs" and score.set == "unseen"
    assert len((folder / "test.ali.txt").read_text().splitlines()) == 4 * 30
    before = (folder / "test.json").stat().st_mtime_ns
    capsys.readouterr()
    verb.run(parse("conf/train_hrf_xs.yaml"))
    assert capsys.readouterr().out.count("up to date") == 2
    assert (folder / "test.json").stat().st_mtime_ns == before


def test_verb_scores_again_when_hypotheses_or_baseline_change(recipe, capsys):
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    output = Path("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    first = read(output)
    hypothesis = Path("exp/hrf_xs/decode/merged/ctc_greedy/test/text")
    hypothesis.write_text(Path("data/test/text").read_text())
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    second = read(output)
    assert first.metrics["wer"].value > 0 and second.metrics["wer"].value == 0
    baseline = Path("exp/base_xs/decode/merged/ctc_greedy/test/text")
    baseline.write_text(Path("data/test/text").read_text())
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    assert read(output).compared().p == 1.0
    output.write_text("{")  # half a file, as of a killed writer
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    assert read(output).metrics["wer"].value == 0


def test_verb_compares_a_variant_with_each_that_its_config_names(recipe, capsys):
    config, folder = Path("conf/train_hrf_xs.yaml"), Path("exp/hrf_xs/score/small/ctc_greedy")
    named = "{gone: null, large: null, small: [gone, large, base_xs/merged, gone_xs/merged]}"
    config.write_text(f"encoder: conformer\nrecipe: {{variant: small, variants: {named}}}\n")
    ids = [f"test-{i:03}" for i in range(30)]
    Path("exp/hrf_xs/decode/merged").rename("exp/hrf_xs/decode/small")
    large = Path("exp/hrf_xs/decode/large/ctc_greedy/test/text")
    write_table(large, ids, spoilt(sentences(30, 0), 0.1, 3))
    verb.run(parse(str(config), "--sets", "test", "--variant", "small"))
    said = capsys.readouterr().out
    for absent in ("hrf_xs/decode/gone", "gone_xs/decode/merged"):
        assert f"has no hypotheses exp/{absent}/ctc_greedy/test/text: no paired test" in said
    found = read(folder / "test.json")
    metrics = ["wer", "cer"] * 2
    names = ["hrf_xs/large"] * 2 + ["base_xs/merged"] * 2
    assert [(c.metric, c.baseline) for c in found.comparisons] == list(
        zip(metrics, names, strict=True)
    )
    assert len((folder / "test.ali.txt").read_text().splitlines()) == 4 * 30
    for tag in names[::2]:
        words = ["--sets", "test", "--variant", "small", "--baseline", tag, "--out", "alone"]
        verb.run(parse(str(config), *words))
        alone = read("alone/ctc_greedy/test.json").comparisons
        assert alone == [c for c in found.comparisons if c.baseline == tag]
    assert found.baseline == "hrf_xs/large" and found.compared().difference > 0
    verb.run(parse(str(config), "--sets", "test", "--variant", "small"))
    assert "up to date" in capsys.readouterr().out


def test_verb_without_the_configs_baseline_scores_without_a_test(recipe, capsys):
    Path("exp/base_xs").rename("exp/gone")
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    score = read("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    assert score.baseline is None
    assert "no paired test" in capsys.readouterr().out


def test_verb_takes_the_baselines_only_variant(recipe):
    Path("exp/base_xs/decode/merged").rename("exp/base_xs/decode/plain")
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    score = read("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    assert score.baseline == "base_xs"


def test_verb_takes_the_baselines_merged_variant_of_several(recipe):
    rounded = Path("exp/base_xs/decode/merged+4b/ctc_greedy/test/text")
    write_table(rounded, ["u"], ["x"])
    Path("exp/hrf_xs/decode/merged").rename("exp/hrf_xs/decode/2L-8-4b")
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test", "--variant", "2L-8-4b"))
    score = read("exp/hrf_xs/score/2L-8-4b/ctc_greedy/test.json")
    assert score.baseline == "base_xs"


def test_verb_scores_the_sets_of_folds_against_a_baseline_in_a_folder(recipe):
    for tag in ("hrf_xs", "base_xs"):
        for folder in ("data", f"exp/{tag}/decode/merged/ctc_greedy"):
            shutil.copytree(Path(folder, "test"), Path(folder, "voice-a/test"), dirs_exist_ok=True)
            shutil.rmtree(Path(folder, "unseen"), ignore_errors=True)
    Path("exp/grid_some").mkdir()
    Path("exp/base_xs").rename("exp/grid_some/base_xs")
    for baseline in ("grid_some/base_xs", "grid_some/base_xs/merged"):
        verb.run(parse("conf/train_hrf_xs.yaml", "--baseline", baseline))
        for name in ("test", "voice-a/test"):
            score = read(f"exp/hrf_xs/score/merged/ctc_greedy/{name}.json")
            assert (score.set, score.baseline) == (name, baseline)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give a CONFIG"),
        (["--ref", "a", "--hyp", "b"], "--out is missing"),
        (["--ref", "a", "--hyp", "b", "--out", "c", "--sets", "d"], "--sets needs a CONFIG"),
        (["--ref", "no", "--hyp", "b", "--out", "c"], "no file no"),
        (["CONFIG", "--ref", "a"], "--ref is for plain files"),
        (["CONFIG", "--sets", "tset"], "did you mean 'test'?"),
        (["CONFIG", "--variant", "shared"], "run stage 6: espnet-ext decode"),
        (["CONFIG", "--sets", "test", "--variant", "shared"], "--variant shared --sets test"),
        (["CONFIG", "--baseline", "bas_xs"], "did you mean 'base_xs'?"),
        (["CONFIG", "--baseline", "hrf_xs"], "another variant of it is hrf_xs/VARIANT"),
        (["CONFIG", "--baseline", "hrf_xs/merged"], "this is the run itself"),
        (["CONFIG", "--baseline", "base_xs/plain"], "decoded as merged but not as plain"),
        (["conf/none.yaml"], "no config"),
    ],
)
def test_verb_tells_what_to_do(recipe, arguments, part):
    arguments = [a.replace("CONFIG", "conf/train_hrf_xs.yaml") for a in arguments]
    with pytest.raises(UserError) as error:
        verb.run(parse(*arguments))
    assert part in str(error.value) and "\n" not in str(error.value)


def test_verb_names_a_named_baseline_that_is_not_decoded(recipe):
    Path("exp/base_xs/decode/merged/ctc_greedy/test/text").unlink()
    with pytest.raises(UserError, match="run stages 1 to 6"):
        verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test", "--baseline", "base_xs"))
    for variant in ("a", "b"):
        path = Path("exp/base_xs/decode", variant, "ctc_greedy/test/text")
        write_table(path, ["u"], ["x"])
    with pytest.raises(UserError, match="decoded as a, b but not as merged"):
        verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test", "--baseline", "base_xs"))


def test_verb_keeps_the_old_score_when_the_new_texts_are_bad(recipe):
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    output = Path("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    before = output.read_text()
    hypothesis = Path("exp/hrf_xs/decode/merged/ctc_greedy/test/text")
    hypothesis.write_text("".join(hypothesis.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"no hypothesis for utterance test-029"):
        verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    assert output.read_text() == before


def test_plain_files_with_baseline(recipe, capsys):
    arguments = ["--ref", "data/test/text", "--utt2spk", "data/test/utt2spk", "--out", "scored"]
    arguments += ["--hyp", "exp/hrf_xs/decode/merged/ctc_greedy/test/text"]
    arguments += ["--baseline-hyp", "exp/base_xs/decode/merged/ctc_greedy/test/text"]
    verb.run(parse(*arguments))
    score = read("scored/score.json")
    assert score.set == "test" and score.speakers == 5
    assert score.compared("wer").difference < 0
    assert Path("scored/score.ali.txt").is_file()
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    staged = read("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    assert staged.metrics == score.metrics and staged.errors == score.errors


def test_any_two_runs_and_variants_compare_beside_the_runs_own_scores(recipe):
    verb.run(parse("conf/train_hrf_xs.yaml", "--sets", "test"))
    own = Path("exp/hrf_xs/score/merged/ctc_greedy/test.json")
    before = own.read_text()
    other = Path("exp/hrf_xs/decode/4bit/ctc_greedy/test/text")
    write_table(other, *zip(*_shuffled("data/test/text"), strict=True))
    arguments = ["conf/train_hrf_xs.yaml", "--sets", "test", "--out", "compared"]
    verb.run(parse(*arguments, "--baseline", "hrf_xs/4bit"))
    score = read("compared/ctc_greedy/test.json")
    found = score.compared("wer")
    assert found.baseline == "hrf_xs/4bit" and found.difference < 0
    assert found.mapsswe.p < 1e-6 and found.mapsswe.z < 0
    assert own.read_text() == before
    assert read(own).metrics["wer"] == score.metrics["wer"]


def _shuffled(reference):
    rows = [line.split() for line in Path(reference).read_text().splitlines()]
    return [(row[0], " ".join(reversed(row[1:]))) for row in rows]


def test_error_of_the_command_is_one_line(tmp_path):
    command = [sys.executable, "-m", "espnet_ext.cli.main", "score", "conf/no.yaml"]
    root = Path(verb.__file__).parents[2]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("espnet-ext score: error: ") and done.stderr.count("\n") == 1


def test_scoring_imports_no_torch(recipe):
    code = (
        "import sys; sys.argv = ['espnet-ext', 'score', 'conf/train_hrf_xs.yaml']\n"
        "from espnet_ext.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "heavy = {'torch', 'espnet2', 'espnet', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(verb.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path("exp/hrf_xs/score/merged/ctc_greedy/test.json").is_file()

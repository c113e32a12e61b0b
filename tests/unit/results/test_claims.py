"""Claims of papers: each verdict follows from the numbers, and each fault is one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from espnet_ext.config.grid import read_grid
from espnet_ext.errors import UserError
from espnet_ext.results.claims import DOES_NOT, HOLDS, UNTOLD, claims_lines, judge, read_claims
from espnet_ext.results.evidence import Results
from espnet_ext.results.pages.main import results_page
from espnet_ext.results.schema import NOT_MEASURED
from tests.fixtures.a_run import a_score

ROOT = Path(__file__).parents[3]
FOLDS = 12
NOISE = np.random.default_rng(5).normal(0, 0.01, (9, FOLDS))


def grid(**means):
    """A summary with systems of these mean scores, fold by fold with some noise."""
    systems = []
    for row, (name, value) in enumerate(means.items()):
        scores = value + NOISE[row] - NOISE[row].mean()
        by_unit = {f"v{k}": float(score) for k, score in enumerate(scores)}
        system = {"system": name, "by_unit": by_unit, "parameters": 1000, "max_difference": 2e-6}
        systems.append({**system, "macs_per_second": NOT_MEASURED})
    return {"dataset": "d", "task": "t", "grid": "g", "unit": "fold", "systems": systems}


def verdict(tmp_path, rule, item, results, **options):
    claim = {"claim": "c", "where": "w", "published": "p", "rule": rule, **options}
    content = {"paper": "P", "claims": [{**claim, "evidence": [item]}]}
    (tmp_path / "claims").mkdir(exist_ok=True)
    (tmp_path / "claims/p.yaml").write_text(yaml.safe_dump(content))
    (read,) = read_claims(tmp_path)["P"]
    return judge(read, item, results)


def of(*grids, runs=(), of_stacks=()):
    return Results.of(runs, grids, of_stacks)


def similarity(beside, cuts):
    """A record whose neighbouring layers are this alike."""
    count = len(beside) + 1
    matrix = np.eye(count)
    for i, value in enumerate(beside):
        matrix[i, i + 1] = matrix[i + 1, i] = value
    found = {"cka": matrix.tolist(), "blocks": {"cka": {"first_layers": cuts}}}
    return "similarity", {"dataset": "d", "task": "t", "name": "s", **found}


@pytest.mark.parametrize(
    ("beside", "cuts", "expected", "measured"),
    [
        ((0.9, 0.4, 0.8), [2], HOLDS, "layers 0-1, 2-3; neighbours across 0.400, others from 0.8"),
        ((0.9, 0.8, 0.4), [2], DOES_NOT, "neighbours across 0.800, others from 0.400"),
        ((0.9,), None, UNTOLD, "2 layers are too few to cut"),
    ],
)
def test_blocks(tmp_path, beside, cuts, expected, measured):
    results = of(of_stacks=[similarity(beside, cuts)])
    item = {"similarity": "d_t/s", "measure": "cka"}
    text, told = verdict(tmp_path, "blocks", item, results)
    assert (told, measured in text) == (expected, True)
    assert verdict(tmp_path, "blocks", {**item, "similarity": "d_t/no"}, results) == (
        NOT_MEASURED,
        NOT_MEASURED,
    )
    with pytest.raises(UserError, match="unknown measure 'cqa'; did you mean 'cka'"):
        verdict(tmp_path, "blocks", {**item, "measure": "cqa"}, results)


def text_grid(**pairs):
    """A grid of recognisers: system a against b, by metric (difference, low, high, p)."""
    compared = {
        metric: {
            "seeds": [1, 2],
            "difference": found[0],
            "p": found[3],
            "interval": [found[1], found[2]],
            "by_seed": {"1": found[0], "2": found[0]},
        }
        for metric, found in pairs.items()
    }
    scores = {metric: {"by_seed": {"1": 0.4, "2": 0.6, "3": 9.0}} for metric in pairs}
    row = {"system": "a", "scores": scores, "than": {"b": compared}}
    rows = [row, {"system": "b", "scores": scores, "than": None}]
    record = {"dataset": "d", "task": "t", "grid": "g", "part": "test", "systems": rows}
    return record | {"metrics": list(pairs)}


@pytest.mark.parametrize(
    ("metric", "pair", "expected", "gain"),
    [
        ("wer", (-0.02, -0.03, -0.01, 0.01), HOLDS, "gain +0.010 to +0.030"),
        ("wer", (0.02, 0.01, 0.03, 0.01), DOES_NOT, "gain -0.030 to -0.010"),
        ("wer", (-0.02, -0.05, 0.01, 0.2), UNTOLD, "gain -0.010 to +0.050"),
        ("bleu", (2.0, 1.0, 3.0, 0.01), HOLDS, "gain +1.000 to +3.000"),
        ("bleu", (-2.0, -3.0, -1.0, 0.01), DOES_NOT, "gain -3.000 to -1.000"),
    ],
)
def test_recognisers_are_better_with_fewer_errors_translators_with_more_bleu(
    tmp_path, metric, pair, expected, gain
):
    results = of(text_grid(**{metric: pair}))
    item = {"grid": "d_t/g", "system": "a", "than": "b"}
    text, told = verdict(tmp_path, "better", item, results)
    assert told == expected
    assert f"0.500 against {0.5 - pair[0]:.3f} {metric.upper()}, test, 2 seeds" in text
    assert gain in text


def test_recognisers_that_were_not_compared_are_named(tmp_path):
    results = of(text_grid(wer=(0, 0, 0, 1)))
    item = {"grid": "d_t/g", "system": "a", "than": "b"}
    for change, words in (
        ({"metric": "war"}, "unknown metric 'war'; did you mean 'wer'"),
        ({"than": "c"}, "a was not compared with 'c'.*the grid's file must name it under than"),
        ({"system": "b", "than": "a"}, "b was not compared with 'a'"),
    ):
        with pytest.raises(UserError, match=words):
            verdict(tmp_path, "better", item | change, results)


@pytest.mark.parametrize(("gone", "expected"), [(2, HOLDS), (1, DOES_NOT)])
def test_removable_layers(tmp_path, gone, expected):
    orders = [{"order": "backward", "removable": gone}, {"order": "forward", "removable": 0}]
    record = {"dataset": "d", "task": "t", "name": "p", "orders": orders, "model": {"layers": 5}}
    item = {"pruning": "d_t/p", "order": "backward"}
    results = of(of_stacks=[("pruning", record)])
    text, told = verdict(tmp_path, "removable", item, results, low=0.4)
    assert (text, told) == (f"{gone} of 5 layers, {gone / 5:.0%}", expected)
    with pytest.raises(UserError, match="no order 'bakward'; did you mean 'backward'"):
        verdict(tmp_path, "removable", {**item, "order": "bakward"}, results, low=0.4)


PAIR = {"grid": "d_t/g", "system": "a", "than": "b"}


@pytest.mark.parametrize(
    ("a", "b", "options", "expected"),
    [
        (0.53, 0.50, {}, HOLDS),
        (0.50, 0.53, {}, DOES_NOT),
        (0.502, 0.500, {}, UNTOLD),
        (0.53, 0.50, {"gain": 0.03}, HOLDS),
        (0.52, 0.50, {"gain": 0.06}, DOES_NOT),  # better, but the claimed gain is excluded
        (0.50, 0.50, {"gain": 0.06}, DOES_NOT),
        (0.50, 0.50, {"gain": 0.003}, UNTOLD),
    ],
)
def test_better_needs_the_test_and_the_claimed_gain(tmp_path, a, b, options, expected):
    assert verdict(tmp_path, "better", PAIR, of(grid(a=a, b=b)), **options)[1] == expected


def test_the_figures_are_those_of_the_folds(tmp_path):
    results = of(grid(a=0.53, b=0.50))
    rows = [list(s["by_unit"].values()) for s in results.grids["d_t/g"]["systems"]]
    found = stats.ttest_rel(*rows)
    low, high = found.confidence_interval(0.95)
    measured, _ = verdict(tmp_path, "better", PAIR, results)
    assert f"0.530 against 0.500 weighted F1, {FOLDS} folds: +0.030" in measured
    assert f"(gain {low:+.3f} to {high:+.3f}, p < 0.001)" in measured


def test_one_fold_tells_nothing(tmp_path):
    one = grid(a=0.9, b=0.1)
    for system in one["systems"]:
        system["by_unit"] = {"fixed": system["by_unit"]["v0"]}
    for rule, options in (("better", {"gain": 0.99}), ("within", {"low": 0.0})):
        measured, found = verdict(tmp_path, rule, PAIR, of(one), **options)
        assert (found, "too few to test" in measured) == (UNTOLD, True)


@pytest.mark.parametrize(
    ("a", "options", "expected"),
    [
        (0.50, {"low": -0.03, "high": 0.03}, HOLDS),
        (0.60, {"low": -0.03}, HOLDS),
        (0.60, {"high": 0.03}, DOES_NOT),
        (0.40, {"low": -0.03, "high": None}, DOES_NOT),
        (0.47, {"low": -0.03}, UNTOLD),
    ],
)
def test_within_needs_the_whole_interval(tmp_path, a, options, expected):
    assert verdict(tmp_path, "within", PAIR, of(grid(a=a, b=0.5)), **options)[1] == expected


@pytest.mark.parametrize(
    ("a", "expected", "share"),
    [(0.49, HOLDS, "98%"), (0.40, DOES_NOT, "80%"), (0.476, UNTOLD, "95%")],
)
def test_kept_is_told_from_the_share_of_every_fold(tmp_path, a, expected, share):
    text, told = verdict(tmp_path, "kept", PAIR, of(grid(a=a, b=0.50)), low=0.95)
    assert (told, f", {share}; to 95% of it" in text) == (expected, True)
    # The interval by hand, of the share of each fold.
    scores = {s["system"]: s["by_unit"] for s in grid(a=a, b=0.50)["systems"]}
    above = [scores["a"][unit] - 0.95 * scores["b"][unit] for unit in scores["a"]]
    half = stats.t.ppf(0.975, FOLDS - 1) * stats.sem(above)
    assert f"({np.mean(above) - half:+.3f} to {np.mean(above) + half:+.3f})" in text


def test_times_are_compared_within_one_file(tmp_path):
    systems = {"whole": {"ms": 10.0, "parameters": 200}, "mimic": {"ms": 1.0, "parameters": 30}}
    results = Results.of((), (), times={"model": {"systems": systems}})
    item = {"time": "model", "system": "mimic", "than": "whole"}
    told = verdict(tmp_path, "ratio", item, results, field="ms", high=0.2)
    assert told == ("ms 1.0 / 10.0 = 0.100", HOLDS)
    told = verdict(tmp_path, "ratio", item, results, field="parameters", high=0.1)
    assert told == ("parameters 30 / 200 = 0.150", DOES_NOT)
    absent = verdict(tmp_path, "ratio", {**item, "time": "no"}, results, field="ms", high=0.2)
    assert absent == (NOT_MEASURED, NOT_MEASURED)
    with pytest.raises(UserError, match="time model has no system 'mimik'; did you mean 'mimic'"):
        verdict(tmp_path, "ratio", {**item, "system": "mimik"}, results, field="ms", high=0.2)


def test_best_of_several(tmp_path):
    item = {"grid": "d_t/g", "system": "a", "among": ["b", "c"]}
    for scores, expected in (
        ({"a": 0.6, "b": 0.5, "c": 0.4}, HOLDS),
        ({"a": 0.6, "b": 0.599, "c": 0.4}, UNTOLD),
        ({"a": 0.5, "b": 0.6, "c": 0.4}, DOES_NOT),
    ):
        measured, found = verdict(tmp_path, "best", item, of(grid(**scores)))
        assert found == expected
        assert measured.startswith(f"a {scores['a']:.3f}; b {scores['b']:.3f}")


def test_trends_are_coefficients_of_the_curve(tmp_path):
    item = {"grid": "d_t/g", "systems": ["r2", "r4", "r8", "r16"]}
    rising = of(grid(r2=0.40, r4=0.43, r8=0.46, r16=0.49))
    measured, found = verdict(tmp_path, "trend", item, rising, degree=1)
    assert found == HOLDS and "slope a step +0.0300" in measured
    assert verdict(tmp_path, "trend", item, rising, degree=2)[1] == UNTOLD  # straight
    dip = of(grid(r2=0.49, r4=0.40, r8=0.40, r16=0.49))
    measured, found = verdict(tmp_path, "trend", item, dip, degree=2)
    curve = np.polyfit(range(4), [0.49, 0.40, 0.40, 0.49], 2)
    assert found == HOLDS and f"bend {curve[0]:+.4f}" in measured
    hill = of(grid(r2=0.40, r4=0.49, r8=0.49, r16=0.40))
    assert verdict(tmp_path, "trend", item, hill, degree=2)[1] == DOES_NOT
    with pytest.raises(UserError, match="degree 1 or 2"):
        verdict(tmp_path, "trend", {**item, "systems": ["r2", "r4"]}, dip, degree=2)


def test_counts_are_compared_exactly(tmp_path):
    record = grid(a=0.5, b=0.4)
    fields = {"fields": ["parameters"]}
    assert verdict(tmp_path, "equal", PAIR, of(record), **fields)[1] == HOLDS
    record["systems"][0]["parameters"] = 1001
    measured, found = verdict(tmp_path, "equal", PAIR, of(record), **fields)
    assert (found, measured) == (DOES_NOT, "parameters 1,001 and 1,000")
    fields["fields"].append("macs_per_second")
    assert verdict(tmp_path, "equal", PAIR, of(record), **fields)[1] == NOT_MEASURED
    ratio = {"field": "parameters", "low": 1.0, "high": 1.002}
    assert verdict(tmp_path, "ratio", PAIR, of(record), **ratio)[1] == HOLDS
    ratio["high"] = 1.0
    assert verdict(tmp_path, "ratio", PAIR, of(record), **ratio)[1] == DOES_NOT
    one = {"grid": "d_t/g", "system": "a"}
    for limit, expected in ((1e-5, HOLDS), (1e-6, DOES_NOT)):
        options = {"field": "max_difference", "limit": limit}
        assert verdict(tmp_path, "at_most", one, of(record), **options)[1] == expected


def test_an_open_question_names_the_better(tmp_path):
    assert verdict(tmp_path, "question", PAIR, of(grid(a=0.5, b=0.6)))[1] == "b is better"
    assert verdict(tmp_path, "question", PAIR, of(grid(a=0.5, b=0.5)))[1] == UNTOLD


def run(tag="hrf_xs", **over):
    result = {"dataset": "d", "task": "asr1", "tag": tag, "variant": "merged"}
    return {**result, "parameters": {"total": 900}, "scores": [a_score(**over)]}


def test_a_sum_over_other_runs(tmp_path):
    runs = [
        run(tag) | {"training": {"seconds": seconds}}
        for tag, seconds in (("all", 500.0), ("one", 300.0), ("two", 700.0))
    ]
    item = {"run": "d_asr1/all", "among": ["one", "two"]}
    for low, expected in ((2.0, HOLDS), (2.1, DOES_NOT)):
        options = {"field": "training.seconds", "low": low}
        told = verdict(tmp_path, "of_sum", item, of(runs=runs), **options)
        assert told == ("training.seconds: 2 together 1,000 / 500 = 2.00", expected)
    assert verdict(tmp_path, "of_sum", item, of(runs=runs[:2]), **options)[1] == NOT_MEASURED


def test_an_open_question_about_a_run_names_it(tmp_path):
    item = {"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "wer"}
    assert verdict(tmp_path, "question", item, of(runs=[run()]))[1] == "d_asr1/hrf_xs is better"
    named = run()
    named["scores"][0]["baseline"]["tag"] = "base_xs/merged"  # a form of it, the usual one
    assert verdict(tmp_path, "better", item, of(runs=[named]))[1] == HOLDS


def test_a_single_run_against_its_baseline(tmp_path):
    item = {"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "wer"}
    measured, found = verdict(tmp_path, "better", item, of(runs=[run()]))
    # A lower error rate is a gain: 0.40 after 0.43, by the interval of -0.05 to -0.01.
    assert found == HOLDS
    assert measured == "0.400 against 0.430 WER, test: -0.030 (gain +0.010 to +0.050, p 0.010)"
    assert verdict(tmp_path, "better", item, of(runs=[run()]), gain=0.06)[1] == DOES_NOT
    cer = {**item, "metric": "cer"}
    assert verdict(tmp_path, "better", cer, of(runs=[run()]))[1] == DOES_NOT
    # Five speakers: the interval by speaker has 0 in it, whatever the p by utterance says.
    few = of(runs=[run(name="unseen")])
    measured, found = verdict(tmp_path, "better", item, few)
    assert found == UNTOLD and "gain -0.020 to +0.080" in measured
    equal = verdict(
        tmp_path, "equal", item, of(runs=[run(), run("base_xs")]), fields=["parameters.total"]
    )
    assert equal == ("parameters.total 900 and 900", HOLDS)
    alone = verdict(tmp_path, "equal", item, of(runs=[run()]), fields=["parameters.total"])
    assert alone[1] == NOT_MEASURED


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({**PAIR, "than": "bb"}, "grid d_t/g has no system 'bb'; did you mean 'b'"),
        ({"run": "d_asr1/hrf_xs", "than": "other"}, "was not compared with other"),
        ({"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "weighted_f1"}, "unknown metric"),
        ({"run": "d_asr1/hrf_xs", "than": "base_xs", "set": "dev"}, "set and method must name"),
    ],
)
def test_evidence_that_is_there_must_have_what_is_named(tmp_path, item, words):
    with pytest.raises(UserError, match=r"p\.yaml: claim 1") as caught:
        verdict(tmp_path, "better", item, of(grid(a=0.5, b=0.4), runs=[run()]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"rule": "beter"}, "unknown rule 'beter'; did you mean 'better'"),
        ({"claim": None}, "claim must be a text"),
        ({"gian": 0.3}, "did you mean 'gain'"),
        ({"gain": "much"}, "gain has the wrong kind"),
        ({"gain": True}, "gain has the wrong kind"),
        ({"evidence": []}, "evidence must be a list"),
        ({"evidence": [{"system": "a", "than": "b"}]}, "name one of grid and run"),
        ({"evidence": [{"pruning": "d_t/p", "order": "backward"}]}, "name one of grid and run"),
        ({"evidence": [{"grid": "g", "system": "a"}]}, "missing key than"),
        ({"evidence": [{**PAIR, "then": "b"}]}, "did you mean 'than'"),
        ({"evidence": [{**PAIR, "than": ["b"]}]}, "than has the wrong kind"),
        ({"rule": "trend", "evidence": [{"run": "r", "systems": ["a"]}]}, "systems of a grid"),
        ({"rule": "equal"}, "rule equal needs fields"),
    ],
)
def test_each_fault_of_a_file_is_one_line(tmp_path, over, words):
    claim = {"claim": "c", "where": "w", "published": "p", "rule": "better", "evidence": [PAIR]}
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims/p.yaml"
    path.write_text(yaml.safe_dump({"paper": "P", "claims": [claim | over]}))
    with pytest.raises(UserError) as caught:
        read_claims(tmp_path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    for content, fault in (("a: [", "not valid YAML"), ("paper: x\n", "expected the keys")):
        path.write_text(content)
        with pytest.raises(UserError, match=fault):
            read_claims(tmp_path)


def test_committed_claims_name_systems_of_the_grids():
    """Evidence that is missing is only "not measured": a misspelt name must fail here."""
    named = 0
    for claims in read_claims(ROOT / "results").values():
        for claim in claims:
            for item in claim.evidence:
                if "grid" not in item:
                    continue
                corpus, _, name = item["grid"].partition("/")
                dataset, _, task = corpus.rpartition("_")
                path = ROOT / "egs" / dataset / task / "conf" / f"grid_{name}.yaml"
                pairs = {system.name: system.than for system in read_grid(path).systems}
                known = set(pairs)
                wanted = {item.get("system"), item.get("than")} - {None}
                wanted |= {*item.get("among", []), *item.get("systems", [])}
                assert wanted <= known, (claim.source, wanted - known)
                if any(pairs.values()):  # such a grid holds only the pairs that it names
                    assert item["than"] in pairs[item["system"]], (claim.source, item)
                named += len(wanted)
    assert named > 20


def test_the_page_has_a_table_of_each_paper_and_says_what_is_not_measured():
    papers = read_claims(ROOT / "results")
    lines = "\n".join(claims_lines(papers, Results()))
    assert "### HRF (arXiv 2411.09339)" in lines
    rows = [line for line in lines.splitlines() if line.endswith(f"| {NOT_MEASURED} |")]
    assert len(rows) == sum(len(c.evidence) for claims in papers.values() for c in claims)
    assert all(row.count(NOT_MEASURED) == 2 for row in rows)
    assert lines in results_page([], papers=papers)
    assert "Published claims" not in results_page([])

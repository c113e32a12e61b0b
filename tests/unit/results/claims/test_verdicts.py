"""Claims of papers: each verdict follows from the numbers, and each fault is one line."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from espnet_ext.config.grid import read_grid
from espnet_ext.errors import UserError
from espnet_ext.results.benchmarks import Benchmark
from espnet_ext.results.claims.papers import judge_paper, read_papers
from espnet_ext.results.claims.verdicts import DOES_NOT, FAILED, HOLDS, INCONCLUSIVE, WORSE
from espnet_ext.results.grids import GridValue
from espnet_ext.results.pages.claims import claims_section
from espnet_ext.results.pages.index import pages
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.stacks import Blocks, Similarity
from espnet_ext.results.store import Results
from tests.fixtures.a_claim import (
    FOLDS,
    PAIR,
    by_unit,
    grid,
    of,
    pruning,
    run,
    text_grid,
    verdict,
)

ROOT = Path(__file__).parents[4]
COMMITTED = Path("results")


SAME = (0.9, 0.9, 0.9)  # of neighbours among the first four layers


def similarity(neighbours, cuts) -> Similarity:
    """A record whose neighbouring layers are this alike."""
    count = len(neighbours) + 1
    matrix = np.eye(count)
    for i, value in enumerate(neighbours):
        matrix[i, i + 1] = matrix[i + 1, i] = value
    blocks = {"cka": Blocks(first_layers=cuts, contrast=0.1)}
    matrices = dict.fromkeys(("cosine", "cka", "knn"), matrix.tolist())
    return Similarity.model_construct(dataset="d", task="t", name="s", blocks=blocks, **matrices)


@pytest.mark.parametrize(
    ("neighbours", "cuts", "expected", "measured"),
    [
        (
            (*SAME, 0.4, 0.8),
            [4],
            HOLDS,
            "layers 0-3, 4-5; neighbours across 0.400, others from 0.8",
        ),
        ((*SAME, 0.8, 0.4), [4], DOES_NOT, "neighbours across 0.800, others from 0.400"),
        ((*SAME, 0.8, 0.4), [5], DOES_NOT, "from 0.800; one block is a single layer"),
        ((0.9, 0.9, 0.4, 0.8), [3], INCONCLUSIVE, "5 layers are too few to cut"),
        ((0.9,), None, INCONCLUSIVE, "2 layers are too few to cut"),
    ],
)
def test_blocks(tmp_path, neighbours, cuts, expected, measured):
    results = of(similarity=[similarity(neighbours, cuts)])
    item = {"similarity": "d_t/s", "measure": "cka"}
    text, found = verdict(tmp_path, "blocks", item, results)
    assert (found, measured in text) == (expected, True)
    absent = {**item, "similarity": "d_t/no", "missing": "a stack"}
    found = verdict(tmp_path, "blocks", absent, results)
    assert found == (f"{NOT_MEASURED}: a stack", NOT_MEASURED)
    with pytest.raises(UserError, match="unknown measure 'cqa'; did you mean 'cka'"):
        verdict(tmp_path, "blocks", {**item, "measure": "cqa"}, results)


@pytest.mark.parametrize(
    ("metric", "pair", "expected", "gain"),
    [
        ("wer", (-0.02, -0.03, -0.01, 0.01), HOLDS, "gain +1.0 to +3.0"),
        ("wer", (0.02, 0.01, 0.03, 0.01), DOES_NOT + WORSE, "gain -3.0 to -1.0"),
        ("wer", (-0.02, -0.05, 0.01, 0.2), INCONCLUSIVE, "gain -1.0 to +5.0"),
        ("bleu", (2.0, 1.0, 3.0, 0.01), HOLDS, "gain +1.0 to +3.0"),
        ("bleu", (-2.0, -3.0, -1.0, 0.01), DOES_NOT + WORSE, "gain -3.0 to -1.0"),
    ],
)
def test_recognisers_are_better_with_fewer_errors_translators_with_more_bleu(
    tmp_path, metric, pair, expected, gain
):
    results = of(text_grid(**{metric: pair}))
    item = {"grid": "d_t/g", "system": "a", "than": "b"}
    text, found = verdict(tmp_path, "better", item, results)
    assert found == expected
    own, scale, unit = (5, 1, "BLEU") if metric == "bleu" else (50, 100, "% WER")
    assert f"{own:.1f} against {own - scale * pair[0]:.1f} {unit}, test, 2 seeds" in text
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
    item = {"pruning": "d_t/p", "order": "backward"}
    results = of(pruning=[pruning(backward=gone, forward=0)])
    text, found = verdict(tmp_path, "removable", item, results, low=0.4)
    assert (text, found) == (f"{gone} of 5 layers, {gone / 5:.0%}", expected)
    with pytest.raises(UserError, match="no order 'bakward'; did you mean 'backward'"):
        verdict(tmp_path, "removable", {**item, "order": "bakward"}, results, low=0.4)


@pytest.mark.parametrize(
    ("a", "b", "options", "expected"),
    [
        (0.53, 0.50, {}, HOLDS),
        (0.50, 0.53, {}, DOES_NOT + WORSE),
        (0.502, 0.500, {}, INCONCLUSIVE),
        (0.53, 0.50, {"gain": 0.03}, HOLDS),
        (0.52, 0.50, {"gain": 0.06}, DOES_NOT),  # better, but the claimed gain is excluded
        (0.50, 0.50, {"gain": 0.06}, DOES_NOT),
        (0.50, 0.50, {"gain": 0.003}, INCONCLUSIVE),
    ],
)
def test_better_needs_the_test_and_the_claimed_gain(tmp_path, a, b, options, expected):
    assert verdict(tmp_path, "better", PAIR, of(grid(a=a, b=b)), **options)[1] == expected


def test_the_figures_are_those_of_the_folds(tmp_path):
    results = of(grid(a=0.53, b=0.50))
    rows = [list(by_unit(row).values()) for row in results.grids["d_t/g"].systems]
    found = stats.ttest_rel(*rows)
    low, high = found.confidence_interval(0.95)
    measured, _ = verdict(tmp_path, "better", PAIR, results)
    assert f"0.530 against 0.500 weighted F1, {FOLDS} folds: +0.030" in measured
    assert f"(gain {low:+.3f} to {high:+.3f}, p < 0.001)" in measured


def test_one_fold_tells_nothing(tmp_path):
    one = grid(a=0.9, b=0.1)
    for row in one.systems:
        value = GridValue(value=0.5, by_unit={"fixed": by_unit(row)["v0"]})
        row.scores["weighted_f1"] = value
    for rule, options in (("better", {"gain": 0.99}), ("within", {"low": 0.0})):
        measured, found = verdict(tmp_path, rule, PAIR, of(one), **options)
        assert (found, "too few to test" in measured) == (INCONCLUSIVE, True)


@pytest.mark.parametrize(
    ("a", "options", "expected"),
    [
        (0.50, {"low": -0.03, "high": 0.03}, HOLDS),
        (0.60, {"low": -0.03}, HOLDS),
        (0.60, {"high": 0.03}, DOES_NOT),
        (0.40, {"low": -0.03, "high": None}, DOES_NOT + WORSE),
        (0.47, {"low": -0.03}, INCONCLUSIVE + WORSE),
    ],
)
def test_within_needs_the_whole_interval(tmp_path, a, options, expected):
    assert verdict(tmp_path, "within", PAIR, of(grid(a=a, b=0.5)), **options)[1] == expected


def test_near_a_larger_model_means_something_only_if_that_is_better(tmp_path):
    item = {**PAIR, "light": "c"}
    options = {"low": -0.05}
    better = verdict(tmp_path, "within", item, of(grid(a=0.6, b=0.6, c=0.5)), **options)
    assert better[1] == HOLDS
    measured, found = verdict(tmp_path, "within", item, of(grid(a=0.6, b=0.5, c=0.6)), **options)
    assert found == INCONCLUSIVE and measured.endswith("; b is no better than c")


@pytest.mark.parametrize(
    ("a", "expected", "share"),
    [(0.49, HOLDS, "98%"), (0.40, DOES_NOT, "80%"), (0.476, INCONCLUSIVE, "95%")],
)
def test_kept_is_told_from_the_share_of_every_fold(tmp_path, a, expected, share):
    text, found = verdict(tmp_path, "kept", PAIR, of(grid(a=a, b=0.50)), low=0.95)
    assert (found, f", {share}; to 95% of it" in text) == (expected, True)
    # The interval by hand, of the share of each fold.
    scores = {row.system: by_unit(row) for row in grid(a=a, b=0.50).systems}
    above = [scores["a"][unit] - 0.95 * scores["b"][unit] for unit in scores["a"]]
    half = stats.t.ppf(0.975, FOLDS - 1) * stats.sem(above)
    assert f"({np.mean(above) - half:+.3f} to {np.mean(above) + half:+.3f})" in text


def test_times_are_compared_within_one_file(tmp_path):
    systems = {"whole": {"ms": 10.0, "parameters": 200}, "mimic": {"ms": 1.0, "parameters": 30}}
    times = Benchmark.model_construct(measured={"systems": systems})
    results = Results(benchmarks={"stack_time.model": times})
    item = {"time": "model", "system": "mimic", "than": "whole"}
    found = verdict(tmp_path, "ratio", item, results, field="ms", high=0.2)
    assert found == ("ms 1.0 / 10.0 = 0.100", HOLDS)
    found = verdict(tmp_path, "ratio", item, results, field="parameters", high=0.1)
    assert found == ("parameters 30 / 200 = 0.150", DOES_NOT)
    absent = {**item, "time": "no", "missing": "an hour"}
    found = verdict(tmp_path, "ratio", absent, results, field="ms", high=0.2)
    assert found == (f"{NOT_MEASURED}: an hour", NOT_MEASURED)
    with pytest.raises(UserError, match="time model has no system 'mimik'; did you mean 'mimic'"):
        verdict(tmp_path, "ratio", {**item, "system": "mimik"}, results, field="ms", high=0.2)


def test_best_of_several(tmp_path):
    item = {"grid": "d_t/g", "system": "a", "among": ["b", "c"]}
    for scores, expected in (
        ({"a": 0.6, "b": 0.5, "c": 0.4}, HOLDS),
        ({"a": 0.6, "b": 0.599, "c": 0.4}, INCONCLUSIVE),
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
    assert verdict(tmp_path, "trend", item, rising, degree=2)[1] == INCONCLUSIVE  # straight
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
    record.systems[0] = record.systems[0].model_copy(update={"parameters": 1001})
    measured, found = verdict(tmp_path, "equal", PAIR, of(record), **fields)
    assert (found, measured) == (DOES_NOT, "parameters 1,001 and 1,000")
    fields["fields"].append("macs_per_second")
    assert verdict(tmp_path, "equal", PAIR, of(record), **fields) == (
        f"{NOT_MEASURED}: macs_per_second is not published of all systems",
        NOT_MEASURED,
    )
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
    assert verdict(tmp_path, "question", PAIR, of(grid(a=0.5, b=0.5)))[1] == INCONCLUSIVE


def test_a_sum_over_other_runs(tmp_path):
    runs = [run(tag, seconds) for tag, seconds in (("all", 500.0), ("one", 300.0), ("two", 700.0))]
    item = {"run": "d_asr1/all", "among": ["one", "two"]}
    for low, expected in ((2.0, HOLDS), (2.1, DOES_NOT)):
        options = {"field": "training.seconds", "low": low}
        found = verdict(tmp_path, "of_sum", item, of(runs=runs), **options)
        assert found == ("training.seconds: 2 together 1,000 / 500 = 2.00", expected)
    assert verdict(tmp_path, "of_sum", item, of(runs=runs[:2]), **options)[1] == NOT_MEASURED


def test_an_open_question_about_a_run_names_it(tmp_path):
    item = {"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "wer"}
    assert verdict(tmp_path, "question", item, of(runs=[run()]))[1] == "d_asr1/hrf_xs is better"
    named = run(baseline="base_xs/merged")  # a variant of it, the usual one
    assert verdict(tmp_path, "better", item, of(runs=[named]))[1] == HOLDS


def test_a_single_run_against_its_baseline(tmp_path):
    item = {"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "wer"}
    measured, found = verdict(tmp_path, "better", item, of(runs=[run()]))
    # A lower error rate is a gain: 0.40 after 0.43, by the interval of -0.05 to -0.01.
    assert found == HOLDS
    assert measured == "40.0 against 43.0 % WER, test: -3.0 (gain +1.0 to +5.0, p 0.010)"
    assert verdict(tmp_path, "better", item, of(runs=[run()]), gain=0.06)[1] == DOES_NOT
    cer = {**item, "metric": "cer"}
    assert verdict(tmp_path, "better", cer, of(runs=[run()]))[1] == DOES_NOT + WORSE
    # Five speakers: the interval by speaker has 0 in it, whatever the p by utterance says.
    few = of(runs=[run(name="unseen")])
    measured, found = verdict(tmp_path, "better", item, few)
    assert found == INCONCLUSIVE and "gain -2.0 to +8.0" in measured
    equal = verdict(
        tmp_path, "equal", item, of(runs=[run(), run("base_xs")]), fields=["parameters.total"]
    )
    assert equal == ("parameters.total 900 and 900", HOLDS)
    alone = verdict(tmp_path, "equal", item, of(runs=[run()]), fields=["parameters.total"])
    assert alone[1] == NOT_MEASURED


def test_evidence_chooses_the_comparison_with_what_it_names(tmp_path):
    found = run()
    (score,) = found.scores
    worse = [c.model_copy(update={"difference": 0.05}) for c in score.comparisons]
    worse = [c.model_copy(update={"baseline": "base_xs/small"}) for c in worse]
    both = score.model_copy(update={"comparisons": [*score.comparisons, *worse]})
    several = of(runs=[found.model_copy(update={"scores": [both]})])
    item = {"run": "d_asr1/hrf_xs", "than": "base_xs"}
    assert verdict(tmp_path, "better", item, several) == verdict(
        tmp_path, "better", item, of(runs=[found])
    )
    item = {**item, "than": "base_xs/small"}
    measured, _ = verdict(tmp_path, "better", item, several)
    assert measured.startswith("40.0 against 35.0 % WER")
    useless = [c.model_copy(update={"difference": -0.52}) for c in worse]
    failed = score.model_copy(update={"comparisons": [*score.comparisons, *useless]})
    measured, found = verdict(
        tmp_path, "better", item, of(runs=[run().model_copy(update={"scores": [failed]})])
    )
    assert found == FAILED and "base_xs/small has a WER of 92%" in measured


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
        ({"rule": "beter"}, "unknown claims[0].rule 'beter'; did you mean 'better'"),
        ({"claim": None}, "claims[0].claim must be a text"),
        ({"gian": 0.3}, "did you mean 'gain'"),
        ({"gain": "much"}, "claims[0].gain must be a number"),
        ({"gain": True}, "claims[0].gain must be a number"),
        ({"evidence": []}, "claims[0].evidence must have something in it"),
        ({"evidence": [{"system": "a", "than": "b"}]}, "names one of grid and run"),
        ({"evidence": [{"pruning": "d_t/p", "order": "backward"}]}, "names one of grid and run"),
        ({"evidence": [{"grid": "g", "system": "a"}]}, "missing key claims[0].evidence[0].than"),
        ({"evidence": [{**PAIR, "then": "b"}]}, "did you mean 'than'"),
        ({"evidence": [{**PAIR, "than": ["b"]}]}, "evidence[0].than must be a text"),
        ({"rule": "trend", "evidence": [{"run": "r", "systems": ["a"]}]}, "unknown key 'run'"),
        ({"rule": "equal"}, "missing key claims[0].fields"),
    ],
)
def test_each_fault_of_a_file_is_one_line(tmp_path, over, words):
    claim = {"claim": "c", "where": "w", "published": "p", "rule": "better", "evidence": [PAIR]}
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims/p.yaml"
    path.write_text(yaml.safe_dump({"paper": "P", "scope": "s", "claims": [claim | over]}))
    with pytest.raises(UserError) as caught:
        read_papers(tmp_path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    for content, fault in (("a: [", "not valid YAML"), ("paper: x\n", "missing key scope")):
        path.write_text(content)
        with pytest.raises(UserError, match=fault):
            read_papers(tmp_path)


def test_committed_claims_name_systems_of_the_grids():
    """Evidence that is missing is only "not measured": a misspelt name must fail here."""
    named = 0
    for paper in read_papers(ROOT / "results").values():
        for claim in paper.claims:
            items = [found.model_dump() for found in claim.evidence]
            trivial = [item["trivial"] for item in items if item.get("trivial")]
            for item in [*items, *trivial]:
                if "grid" not in item:
                    continue
                corpus, _, name = item["grid"].partition("/")
                dataset, _, task = corpus.rpartition("_")
                path = ROOT / "egs" / dataset / task / "conf/grids" / f"{name}.yaml"
                grid_file = read_grid(path)
                pairs = {system.name: system.than for system in grid_file.systems}
                known = set(pairs)
                wanted = {item.get("system"), item.get("than"), item.get("light")} - {None}
                wanted |= {*(item.get("among") or []), *(item.get("systems") or [])}
                assert wanted <= known, (claim.claim, wanted - known)
                if (
                    any(pairs.values()) and "than" in item
                ):  # such a grid holds only the pairs that it names, and those with its baseline
                    others = (*pairs[item["system"]], grid_file.baseline)
                    assert item["than"] in others, (claim.claim, item)
                named += len(wanted)
    assert named > 20


def test_the_pages_have_every_claim_and_say_what_is_not_measured():
    papers = read_papers(ROOT / "results")
    with pytest.raises(UserError, match="not published; state under missing what it takes"):
        pages(Results(), papers, COMMITTED)
    papers = {name: with_missing(paper) for name, paper in papers.items()}
    made = pages(Results(), papers, COMMITTED)
    index = made[Path("RESULTS.md")].splitlines()
    assert "### HRF (arXiv 2411.09339)" in index
    assert len(index) <= 200 and max(len(line) for line in index) <= 160
    number = 0
    for name, paper in papers.items():
        page = made[COMMITTED / "claims" / f"{name}.md"]
        rows = [line for line in page.splitlines() if line.endswith(f"| {NOT_MEASURED} |")]
        assert len(rows) == sum(len(claim.evidence) for claim in paper.claims)
        assert all(f"| {NOT_MEASURED}: " in row for row in rows)
        for claim in paper.claims:
            (row,) = [line for line in index if line.startswith(f"| {claim.claim} ")]
            cells = [cell.strip() for cell in row.split("|")[2:-1]]
            assert cells == ["", "", "", "", str(len(claim.evidence)), "", ""]
            number += 1
        at = index.index(f"### {paper.paper}")
        assert index[at + 2].startswith("Scope: ") and page.splitlines()[2] == index[at + 2]
    assert number > 40
    assert "Claims" not in pages(Results(), {}, COMMITTED)[Path("RESULTS.md")]


def with_missing(paper):
    """The same paper, as if nothing were published and every piece of evidence said so."""
    claims = [
        claim.model_copy(
            update={
                "evidence": [i.model_copy(update={"missing": "all of it"}) for i in claim.evidence]
            }
        )
        for claim in paper.claims
    ]
    return paper.model_copy(update={"claims": claims})


def test_the_verdicts_of_a_claim_are_counted(tmp_path):
    item = {"grid": "d_t/g", "than": "b"}
    content = {"claim": "c", "where": "w", "published": "p", "rule": "better"}
    content["evidence"] = [{**item, "system": name} for name in ("a", "c", "d")]
    (tmp_path / "claims").mkdir()
    paper = {"paper": "P", "scope": "s", "claims": [content]}
    (tmp_path / "claims/p.yaml").write_text(yaml.safe_dump(paper))
    results = of(grid(a=0.6, b=0.5, c=0.501, d=0.65))
    (one,) = judge_paper(read_papers(tmp_path)["p"], results, "p.yaml")
    assert Counter(found for *_, found in one.findings) == {HOLDS: 2, INCONCLUSIVE: 1}
    assert one.counts() == "holds 2, inconclusive 1"
    papers = read_papers(tmp_path)
    section = claims_section(papers, {"p": [one]}, "results")
    (row,) = [x for x in "\n".join(section).splitlines() if x.startswith("| c ")]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["2", "", "1"]

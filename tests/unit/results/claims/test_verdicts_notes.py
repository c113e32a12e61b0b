"""Claims: what is no evidence, and what a row says about tuning, power, and what is missing."""

import re
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.results.claims.failures import failures_of_rows
from espnet_ext.results.claims.papers import judge_paper, read_papers
from espnet_ext.results.claims.scored import Scored
from espnet_ext.results.claims.verdicts import DOES_NOT, FAILED, HOLDS, INCONCLUSIVE, UNTUNED, WORSE
from espnet_ext.results.grids import POOLED, GridValue
from espnet_ext.results.pages.claims import claims_section, paper_page
from espnet_ext.results.schema import NOT_MEASURED
from espnet_ext.results.store import read_results
from tests.fixtures.a_claim import (
    PAIR,
    a_grid,
    a_row,
    grid,
    of,
    pruning,
    run,
    text_grid,
    verdict,
)

RESULTS = Path(__file__).parents[4] / "results"
RUN = {"run": "d_asr1/hrf_xs", "than": "base_xs", "metric": "wer"}
TOO_FEW = "; interval wider than the effect in question"


# --- trainings that failed


@pytest.mark.parametrize(
    ("rule", "options", "item"),
    [
        ("better", {}, {"system": "a", "than": "b"}),
        ("better", {}, {"system": "b", "than": "a"}),
        ("within", {"low": -1.0, "high": 1.0}, {"system": "c", "than": "b", "light": "a"}),
        ("kept", {"low": 0.9}, {"system": "a", "than": "b"}),
        ("question", {}, {"system": "b", "than": "a"}),
        ("best", {}, {"system": "b", "among": ["c", "a"]}),
        ("trend", {}, {"systems": ["b", "c", "a"]}),
    ],
)
def test_a_system_that_names_one_class_is_no_evidence(tmp_path, rule, options, item):
    found = grid(a=0.5, b=0.6, c=0.6)
    named = {"a": [[1, 49], [2, 48]], "b": [[30, 20], [3, 47]], "c": [[3, 47], [3, 47]]}
    rows = [r.model_copy(update={"confusion": named[r.system]}) for r in found.systems]
    results = of(a_grid(rows))
    measured, said = verdict(tmp_path, rule, {"grid": "d_t/g", **item}, results, **options)
    assert (measured, said) == ("a names one class in 97.0% of decisions", FAILED)
    sizes = {"grid": "d_t/g", "system": "a", "than": "b"}
    same = verdict(tmp_path, "equal", sizes, results, fields=["parameters"])
    assert same[1] == HOLDS  # what it was trained to be does not matter for counts
    exact = {"field": "max_difference", "limit": 1}  # nor for what merging changes
    item = {"grid": "d_t/g", "system": "a"}
    assert verdict(tmp_path, "at_most", item, results, **exact)[1] == HOLDS


def test_a_system_that_names_another_class_in_each_seed_is_no_evidence(tmp_path):
    even = {"confusion": [[25, 25], [25, 25]]}

    def said(majority=0.1, pooled=0.2, **over):
        rows = [row.model_copy(update=even) for row in grid(a=0.5, b=0.6).systems]
        scores = {**rows[0].scores, POOLED: GridValue(value=pooled)}
        rows[0] = rows[0].model_copy(update={"scores": scores, **over})
        return verdict(tmp_path, "better", PAIR, of(a_grid(rows, majority=majority)))

    assert said()[1] == DOES_NOT + WORSE
    assert said(pooled=0.1) == (
        "a has a pooled F1 of 0.1000, no more than the 0.1000 of always naming the commonest class",
        FAILED,
    )
    # In new grids each training is counted, whichever class it names.
    assert said(one_class={"1": 0.96, "2": 0.95})[1] == FAILED
    assert said(one_class={"1": 1.0, "2": 0.5})[1] == DOES_NOT + WORSE


def test_of_the_committed_grids_those_fail_that_learnt_nothing():
    grids = read_results(RESULTS).grids

    def failed(name):
        record = grids[name]
        return {row.system for row in record.systems if failures_of_rows(record, row.system)}, {
            row.system for row in record.systems
        }

    bad, known = failed("fotaq_spk1/fixed")
    assert {"hrf_ratio-32", "hrf_three_factors_sites-all"} <= bad
    assert not bad & {"speechformer_s", "speechformer_m", "hrf_ratio-2", "hrf_ratio-4"}
    bad, known = failed("hedgewars_ser1/speechformer")
    assert "hrf_three_factors_sites-all" in bad and "hrf_ratio-32" in known - bad
    bad, known = failed("asterisk_st1/residual")
    assert {"layers6", "layers2", "layers6_again", "layers2_again"} <= bad
    assert {"share_k3", "residual_k9"} <= known - bad


def test_a_recogniser_with_more_errors_than_words_is_no_evidence(tmp_path):
    bad = text_grid(wer=(-0.02, -0.03, -0.01, 0.01))
    bad.systems[1] = a_row("b", {"wer": GridValue(value=0.96)}, comparisons=[])
    assert verdict(tmp_path, "better", PAIR, of(bad)) == ("b has a WER of 96%", FAILED)
    after, before = run(), run("base_xs")
    before.scores[0].metrics["wer"] = (
        before.scores[0].metrics["wer"].model_copy(update={"value": 0.91})
    )
    # What counts is what was compared with, 0.03 more; another training of it was published.
    assert verdict(tmp_path, "better", RUN, of(runs=[after, before]))[1] == HOLDS
    assert verdict(tmp_path, "better", RUN, of(runs=[run(value=0.86)]))[1] != FAILED
    said = verdict(tmp_path, "better", RUN, of(runs=[run(value=0.88)]))
    assert said == ("base_xs has a WER of 91%", FAILED)


@pytest.mark.parametrize(("bleu", "expected"), [(0.9, FAILED), (1.0, HOLDS)])
def test_a_translator_of_bleu_below_1_is_no_evidence(tmp_path, bleu, expected):
    bad = text_grid(bleu=(2.0, 1.0, 3.0, 0.01))
    bad.systems[1] = a_row("b", {"bleu": GridValue(value=bleu)}, comparisons=[])
    text, said = verdict(tmp_path, "better", PAIR, of(bad))
    assert said == expected
    assert (text == "b has a BLEU of 0.9") == (expected == FAILED)


# --- notes


@pytest.mark.parametrize(
    ("rule", "options", "item"),
    [
        ("better", {}, PAIR),
        ("within", {"low": -0.001}, PAIR),
        ("question", {}, PAIR),
        ("best", {}, {"grid": "d_t/g", "system": "a", "among": ["b", "c"]}),
        ("trend", {}, {"grid": "d_t/g", "systems": ["a", "b", "c"]}),
        ("kept", {"low": 0.999}, PAIR),
    ],
)
def test_each_rule_says_where_data_are_too_few_for_the_published_effect(
    tmp_path, rule, options, item
):
    results = of(grid(a=0.5, b=0.5, c=0.5))
    for effect, few in ((0.0001, True), (0.2, False)):
        options["effect"] = {"weighted_f1": effect}
        text, _ = verdict(tmp_path, rule, item, results, **options)
        assert text.endswith(f"{TOO_FEW} ({effect:g})") == few
    options["effect"] = {"wer": 0.0001}  # of another metric: what counts is a margin, if any
    text, _ = verdict(tmp_path, rule, item, results, **options)
    assert (TOO_FEW in text) == ("low" in options)


def test_a_verdict_that_is_certain_needs_no_note_on_few_data(tmp_path):
    effect = {"effect": {"weighted_f1": 0.0001}}
    for rule, options in (("better", {}), ("within", {"low": -0.1}), ("kept", {"low": 0.9})):
        text, said = verdict(tmp_path, rule, PAIR, of(grid(a=0.6, b=0.5)), **options, **effect)
        assert said == HOLDS and TOO_FEW not in text


def test_the_power_note_is_of_the_wider_interval(tmp_path):
    """With fifty speakers the interval by utterance decides, but that by speaker is the wider."""
    found = run()
    pair = found.scores[0].comparisons[0]
    ends = {"interval": (-0.01, 0.01), "by_speaker": (-0.05, 0.05), "speakers": 50}
    pair = pair.model_copy(update={"difference": 0.0, "p": 0.9, **ends})
    found.scores[0] = found.scores[0].model_copy(update={"comparisons": [pair]})
    assert pair.gain_interval == (-0.01, 0.01) and pair.widest == (-0.05, 0.05)
    for effect, few in ((0.09, True), (0.1, False)):
        text, said = verdict(tmp_path, "better", RUN, of(runs=[found]), effect={"wer": effect})
        assert said == INCONCLUSIVE and (TOO_FEW in text) == few
    narrow = pair.model_copy(update={"by_speaker": None})
    assert narrow.widest == narrow.interval


def test_the_bound_of_the_power_note_is_the_interval(tmp_path):
    pair = text_grid(wer=(0.0, -0.01, 0.01, 0.9), cer=(0.0, -0.01, 0.01, 0.9))
    for effect, few in ((0.0199, True), (0.02, False)):
        options = {"effect": {"wer": effect}}
        assert (TOO_FEW in verdict(tmp_path, "better", PAIR, of(pair), **options)[0]) == few
        # The evidence's own effect goes before that of the claim; none of it is of CER.
        item = {**PAIR, **options}
        said = verdict(tmp_path, "better", item, of(pair), effect={"wer": 1.0})
        assert (TOO_FEW in said[0]) == few
        cer = {**item, "metric": "cer"}
        assert TOO_FEW not in verdict(tmp_path, "better", cer, of(pair))[0]


def test_a_claimed_gain_is_an_effect_and_so_are_a_margin_and_what_may_be_lost(tmp_path):
    results = of(grid(a=0.5, b=0.5))
    for low, high in ((-0.001, None), (-0.2, 0.001), (None, 0.001)):  # the nearer end of a range
        ends = {name: end for name, end in (("low", low), ("high", high)) if end is not None}
        assert f"{TOO_FEW} (0.001)" in verdict(tmp_path, "within", PAIR, results, **ends)[0]
    assert TOO_FEW not in verdict(tmp_path, "within", PAIR, results, high=0)[0]
    assert TOO_FEW in verdict(tmp_path, "better", PAIR, results, gain=0.001)[0]
    assert TOO_FEW not in verdict(tmp_path, "better", PAIR, results, gain=0.02)[0]
    assert verdict(tmp_path, "kept", PAIR, results, low=0.999)[0].endswith(f"{TOO_FEW} (0.0005)")
    assert TOO_FEW not in verdict(tmp_path, "kept", PAIR, results, low=0.9)[0]


def test_an_effect_is_of_a_metric(tmp_path):
    with pytest.raises(UserError, match="no metric 'war'; did you mean 'wer'"):
        verdict(tmp_path, "better", PAIR, of(grid(a=0.5, b=0.5)), effect={"war": 1})
    with pytest.raises(UserError, match="unknown key 'effect'"):
        verdict(tmp_path, "equal", PAIR, of(), fields=["parameters"], effect={"wer": 1})


@pytest.mark.parametrize(("rule", "options"), [("better", {}), ("within", {"low": -1})])
def test_untuned_systems_say_so(tmp_path, rule, options):
    results = of(grid(a=0.5, b=0.5))
    plain = verdict(tmp_path, rule, PAIR, results, **options)
    said = verdict(tmp_path, rule, {**PAIR, "untuned": True}, results, **options)
    assert said == (plain[0] + UNTUNED, plain[1]) and "untuned" in UNTUNED
    bad = text_grid(wer=(-0.02, -0.03, -0.01, 0.01))
    bad.systems[1] = a_row("b", {"wer": GridValue(value=0.96)}, comparisons=[])
    failed = verdict(tmp_path, "better", {**PAIR, "untuned": True}, of(bad))
    assert failed == ("b has a WER of 96%" + UNTUNED, FAILED)
    assert verdict(tmp_path, rule, PAIR, results, untuned=True, **options) == said  # of all rows
    with pytest.raises(UserError, match="unknown key 'untuned'"):
        verdict(tmp_path, "equal", PAIR, results, fields=["parameters"], untuned=True)


def test_counts_have_no_learning_rate(tmp_path):
    item = {**PAIR, "untuned": True}
    text, said = verdict(tmp_path, "equal", item, of(grid(a=0.5, b=0.5)), fields=["parameters"])
    assert said == HOLDS and "untuned" not in text


def test_significantly_worse_is_said_and_counted(tmp_path):
    results = of(grid(a=0.47, b=0.5))
    for low, expected in ((-0.1, HOLDS), (-0.03, INCONCLUSIVE), (-0.001, DOES_NOT)):
        text, said = verdict(tmp_path, "within", PAIR, results, low=low)
        assert said == expected + WORSE and text.endswith("; significantly worse")
    text, said = verdict(tmp_path, "within", PAIR, of(grid(a=0.5, b=0.5)), low=-0.1)
    assert said == HOLDS and "worse" not in text
    # The larger model is no better than the light one, and the light one with more is worse still.
    item, options = {**PAIR, "light": "c"}, {"low": -0.05}
    text, said = verdict(tmp_path, "within", item, of(grid(a=0.4, b=0.5, c=0.6)), **options)
    assert said == INCONCLUSIVE + WORSE
    papers = read_papers(tmp_path)
    judged = {"p": judge_paper(papers["p"], of(grid(a=0.4, b=0.5, c=0.6)), "p.yaml")}
    rows = [line.split("|") for line in "\n".join(claims_section(papers, judged, "r")).split("\n")]
    (header,) = [row for row in rows if row[1:2] and row[1].strip() == "claim"]
    (row,) = [row for row in rows if row[1:2] and row[1].strip() == "c"]
    cells = dict(
        zip((cell.strip() for cell in header), (cell.strip() for cell in row), strict=True)
    )
    assert (cells["inconclusive"], cells["worse"], cells["holds"]) == ("1", "1", "")
    page = paper_page(papers["p"], judged["p"])
    assert "- here: inconclusive (worse) 1" in page and "*(worse)* says" in page


# --- what is missing


def test_evidence_that_is_not_published_says_what_is_missing(tmp_path):
    with pytest.raises(
        UserError, match=r"p\.yaml: claim 1: grid d_t/g: a against b: not published"
    ):
        verdict(tmp_path, "better", PAIR, of())
    item = {**PAIR, "missing": "an hour of training", "untuned": True}
    said = verdict(tmp_path, "better", item, of())
    assert said == (f"{NOT_MEASURED}: an hour of training", NOT_MEASURED)
    assert verdict(tmp_path, "better", item, of(grid(a=0.6, b=0.5)))[1] == HOLDS


def test_a_run_without_its_baseline_says_what_is_missing(tmp_path):
    alone = run()
    alone.scores[0] = alone.scores[0].model_copy(update={"comparisons": []})
    with pytest.raises(UserError, match="was not compared with base_xs"):
        verdict(tmp_path, "better", RUN, of(runs=[alone]))
    item = {**RUN, "missing": "base_xs"}
    said = verdict(tmp_path, "better", item, of(runs=[alone]))
    assert said == (f"{NOT_MEASURED}: base_xs", NOT_MEASURED)
    assert verdict(tmp_path, "better", item, of(runs=[run()]))[1] == HOLDS


# --- systems none of which is better than a trivial one


@pytest.mark.parametrize(
    ("rule", "options", "item"),
    [
        ("better", {}, PAIR),
        ("within", {"low": -0.2}, PAIR),
        ("best", {}, {"grid": "d_t/g", "system": "a", "among": ["b"]}),
        ("trend", {}, {"grid": "d_t/g", "systems": ["b", "a"]}),
    ],
)
def test_systems_of_which_none_beats_a_trivial_one_are_no_evidence(tmp_path, rule, options, item):
    trivial = {"grid": "d_t/g", "system": "regression"}
    for value, expected in ((0.3, HOLDS), (0.9, INCONCLUSIVE)):
        results = of(grid(a=0.6, b=0.5, regression=value))
        text, said = verdict(tmp_path, rule, {**item, "trivial": trivial}, results, **options)
        assert said == expected
        doubt = f"; none is better than regression of d_t/g ({value:.3f})"
        assert text.endswith(doubt) == (expected == INCONCLUSIVE)


def test_one_of_several_systems_may_beat_a_trivial_one_by_chance(tmp_path):
    item = {"grid": "d_t/g", "system": "a", "among": ["b", "c", "d"]}
    trivial = {"grid": "d_t/g", "system": "regression"}
    results = of(grid(a=0.504, b=0.5, c=0.5, d=0.5, regression=0.494))  # p 0.017
    alone = verdict(tmp_path, "better", {**PAIR, "trivial": trivial}, results)
    several = verdict(tmp_path, "best", {**item, "trivial": trivial}, results)
    assert "none is better" not in alone[0] and "none is better" in several[0]


def test_what_cannot_be_compared_with_a_trivial_system_is_an_error_of_one_line(tmp_path):
    results = of(grid(a=0.6, b=0.5), text_grid(wer=(0.0, -0.01, 0.01, 0.9)))
    missing = {**PAIR, "trivial": {"grid": "d_t/none", "system": "x"}}
    with pytest.raises(UserError, match="trivial names grid d_t/none, which is not published"):
        verdict(tmp_path, "better", missing, of(grid(a=0.6, b=0.5)))
    texts = {**PAIR, "trivial": {"grid": "d_t/g", "system": "b"}}
    with pytest.raises(UserError, match="trivial is of classifiers, which grid d_t/g has none of"):
        verdict(tmp_path, "better", texts, results)


def test_a_system_that_is_worse_stays_worse_where_none_is_evidence(tmp_path):
    trivial = {"grid": "d_t/g", "system": "regression"}
    results = of(grid(a=0.4, b=0.5, regression=0.9))
    text, said = verdict(tmp_path, "better", {**PAIR, "trivial": trivial}, results)
    assert said == INCONCLUSIVE + WORSE and "; significantly worse" in text


# --- recognisers and translators that hardly work


def wrong(value, by=0.03):
    """A run of this WER, and one that it was compared with of as much more."""
    found = run(value=value)
    score = found.scores[0]
    pairs = [pair.model_copy(update={"difference": -by}) for pair in score.comparisons]
    found.scores[0] = score.model_copy(update={"comparisons": pairs})
    return found


@pytest.mark.parametrize(("value", "expected"), [(0.5, HOLDS), (0.51, INCONCLUSIVE)])
def test_recognisers_that_both_have_most_words_wrong_are_no_evidence(tmp_path, value, expected):
    text, said = verdict(tmp_path, "better", RUN, of(runs=[wrong(value)]))
    assert said == expected
    note = "; both have a WER above 50.0 %"
    assert text.endswith(note) == (expected == INCONCLUSIVE)
    # Their CER says nothing either, however low it is.
    cer = verdict(tmp_path, "better", {**RUN, "metric": "cer"}, of(runs=[wrong(value)]))
    assert cer[0].endswith(note) == (expected == INCONCLUSIVE)


def test_which_of_two_is_better_can_be_said_of_systems_that_hardly_work(tmp_path):
    text, said = verdict(tmp_path, "question", RUN, of(runs=[wrong(0.7)]))
    assert said == "d_asr1/hrf_xs is better" and "both" not in text


def test_grids_of_translators_that_hardly_translate_are_no_evidence(tmp_path):
    found = text_grid(bleu=(2.0, 1.0, 3.0, 0.01))  # 5.0 against 3.0
    assert verdict(tmp_path, "better", PAIR, of(found))[1] == HOLDS
    for row in found.systems:
        bleu = row.scores["bleu"]
        by_seed = {seed: 0.9 * one for seed, one in bleu.by_seed.items()}
        row.scores["bleu"] = bleu.model_copy(update={"value": 4.5, "by_seed": by_seed})
    text, said = verdict(tmp_path, "better", PAIR, of(found))
    assert said == INCONCLUSIVE and text.endswith("; both have a BLEU below 5.0")


# --- a whole that is no better than a trivial system


def other_grid(name="t", **means):
    return grid(**means).model_copy(update={"name": name})


@pytest.mark.parametrize(
    ("trivial", "expected", "text"),
    [
        (0.3, HOLDS, ""),
        (0.6, INCONCLUSIVE, "; b is no better than trivial (0.500 against 0.600)"),
        (0.499, INCONCLUSIVE, "; b is no better than trivial (0.500 against 0.499)"),
        ({"grid": "d_t/t", "system": "low"}, HOLDS, ""),
        (
            {"grid": "d_t/t", "system": "high"},
            INCONCLUSIVE,
            "; b is no better than high of d_t/t (0.500 against 0.600)",
        ),
    ],
)
def test_what_is_kept_of_a_whole_needs_a_whole_that_works(tmp_path, trivial, expected, text):
    found = grid(a=0.6, b=0.5)
    value = found.systems[1].scores["weighted_f1"].model_copy(update={"interval": (0.45, 0.55)})
    found.systems[1].scores["weighted_f1"] = value
    results = of(found, other_grid(low=0.3, high=0.6))
    measured, said = verdict(tmp_path, "kept", {**PAIR, "trivial": trivial}, results, low=0.95)
    assert said == expected and measured.endswith(text)
    assert ("no better" in measured) == bool(text)


def test_a_trivial_system_is_of_the_same_units(tmp_path):
    strange = other_grid(x=0.3)
    by_unit = {"voice": 0.3, "other": 0.4}
    strange.systems[0].scores["weighted_f1"] = GridValue(value=0.3, by_unit=by_unit)
    results = of(grid(a=0.6, b=0.5), strange)
    for trivial, words in (
        ({"grid": "d_t/t", "system": "x"}, "x of d_t/t was scored on other units than b"),
        ({"grid": "d_t/t", "system": "y"}, "grid d_t/t has no system 'y'"),
        ({"grid": "d_t/u", "system": "y"}, "trivial names grid d_t/u, which is not published"),
        ("much", "must be a number, not 'much'"),
    ):
        with pytest.raises(UserError, match=words):
            verdict(tmp_path, "kept", {**PAIR, "trivial": trivial}, results, low=0.95)
    with pytest.raises(UserError, match=r"trivial must be keys and values, not 0\.3"):
        verdict(tmp_path, "better", {**PAIR, "trivial": 0.3}, results)
    texts = of(text_grid(wer=(0.0, -0.01, 0.01, 0.9)))
    with pytest.raises(UserError, match="trivial is of classifiers"):
        verdict(tmp_path, "kept", {**PAIR, "trivial": 0.3}, texts, low=0.95)


@pytest.mark.parametrize(
    ("over", "expected", "text"),
    [
        ({}, HOLDS, ""),
        ({"interval": (0.25, 0.9)}, INCONCLUSIVE, "the commonest class (0.800 against 0.300)"),
        ({"trivial": 0.6}, HOLDS, ""),
        ({"trivial": 0.75}, INCONCLUSIVE, "trivial (0.800 against 0.750)"),
        ({"trivial": {"grid": "d_t/g", "system": "low"}}, HOLDS, ""),
        (
            {"trivial": {"grid": "d_t/g", "system": "high"}},
            INCONCLUSIVE,
            "high of d_t/g (0.800 against 0.850)",
        ),
    ],
)
def test_removable_layers_need_a_whole_that_works(tmp_path, over, expected, text):
    rows = [a_row("low", {"accuracy": GridValue(value=0.5)})]
    rows += [a_row("high", {"accuracy": GridValue(value=0.85)})]
    interval = over.pop("interval", (0.7, 0.9))
    results = of(a_grid(rows), pruning=[pruning(interval=interval, backward=3)])
    item = {"pruning": "d_t/p", "order": "backward", **over}
    measured, said = verdict(tmp_path, "removable", item, results, low=0.4)
    assert said == expected and measured.startswith("3 of 5 layers, 60%")
    assert measured.endswith(f"the whole is no better than {text}") == bool(text)


def test_what_a_recogniser_keeps_is_a_share_of_what_is_right(tmp_path):
    """0.40 after 0.43 is 60 of 57 points, 105 %; 95 % of 57 is 54.15, so the gain is 0.0585."""
    text, said = verdict(tmp_path, "kept", RUN, of(runs=[run()]), low=0.95)
    assert said == HOLDS
    assert text.startswith("40.0 of 43.0 % WER, test, 105% of what is right; to 95% of it +5.9 (")
    assert "(+3.9 to +7.9)" in text  # that of the gain, 0.01 to 0.05, and 0.0285 more
    # Five speakers: the interval by speaker, -0.02 to 0.08.
    text, said = verdict(tmp_path, "kept", RUN, of(runs=[run(name="unseen")]), low=0.99)
    assert said == INCONCLUSIVE and "(-1.4 to +8.6)" in text
    cer = {**RUN, "metric": "cer"}
    text, said = verdict(tmp_path, "kept", cer, of(runs=[run()]), low=0.995)
    assert said == DOES_NOT  # 0.20 after 0.18: at most 0.41 points may go, at least one did
    kept = verdict(tmp_path, "kept", PAIR, of(text_grid(bleu=(-1.0, -1.2, -0.8, 0.01))), low=0.75)
    assert (
        kept[1] == HOLDS and "5.0 of 6.0 BLEU, test, 2 seeds, 83%; to 75% of it +0.5" in (kept[0])
    )


# --- the committed claims


def committed():
    return read_papers(RESULTS)


def test_every_committed_row_is_measured_or_says_what_is_missing():
    results = read_results(RESULTS)
    for name, paper in committed().items():
        for one in judge_paper(paper, results, name):
            for title, text, said in one.findings:
                if said == NOT_MEASURED:
                    assert len(text.removeprefix(f"{NOT_MEASURED}: ")) > 20, title


def test_committed_effects_are_differences_of_what_was_published():
    found = 0
    for paper in committed().values():
        for claim in paper.claims:
            effects = [getattr(claim, "effect", None)]
            effects += [getattr(item, "effect", None) for item in claim.evidence]
            numbers = [float(number) for number in re.findall(r"\d+\.\d+", claim.published)]
            known = {abs(a - b) for a in numbers for b in numbers} | set(numbers)
            for effect in filter(None, effects):
                for metric, size in effect.items():
                    points = size * (100 if metric in ("wer", "cer") else 1)
                    assert min(abs(points - one) for one in known) < 1e-6, (claim.claim, effect)
                    found += 1
    assert found > 20


def test_committed_comparisons_of_scores_have_the_published_effect():
    """A text with "X against Y" has a number to compare with: some row must use it."""
    for paper in committed().values():
        for claim in paper.claims:
            if "effect" in type(claim).model_fields and " against " in claim.published:
                items = [claim, *claim.evidence]
                assert any(getattr(item, "effect", None) for item in items), claim.claim


def test_committed_rows_of_untuned_hrf_systems_say_so():
    """Tuned were SpeechFormers, plain, larger, with HRF at ratio 4 (grids/tune.json); Whisper."""
    tuned = {"hrf_ratio-4", "hrf_speechformer_s", "speechformer_s", "speechformer_m"}
    tuned |= {"plain", "hrf_half", "hrf_quarter"}  # rates of their own (grids/hrf.json)
    untuned = 0
    for claim in committed()["hrf"].claims:
        for item in claim.evidence:
            fields = item.model_dump()
            among = fields.get("among") or fields.get("systems") or []
            named = {*among, fields.get("system"), fields.get("than")} - {None}
            scored = isinstance(claim, Scored)
            said = item.untuned and scored
            assert said == (scored and not named <= tuned), (claim.claim, item.title())
            untuned += said
    assert untuned > 20


@pytest.mark.parametrize("name", ["allinone", "hrf", "redundancy", "residual"])
def test_the_head_of_a_table_states_its_scope(name):
    scope = committed()[name].scope
    for word in ("ublished on", "easured here", "seed", "minutes|hours", r"\d"):
        assert re.search(word, scope), word

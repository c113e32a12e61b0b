"""Claims of papers beside what was measured here; the verdicts are computed, never written.

A file results/claims/<paper>.yaml holds claims in our words and names committed results:

    paper: HRF (arXiv 2411.09339)
    claims:
      - claim: A light model scores higher when trained with HRF.
        where: abstract
        published: weighted F1 0.550 to 0.580
        rule: better
        gain: 0.03
        evidence:
          - {grid: hedgewars_ser1/voice, system: hrf_conformer_s, than: conformer_s}
          - {run: fotaq_asr1/hrf_conformer_xs, than: conformer_xs, set: test, metric: wer}

``grid`` is results/<dataset>_<task>/grids/<name>.json, whose weighted F1 is compared fold by
fold, or speaker by speaker; of recognisers and translators it holds comparisons by ``metric``.
``run`` is results/<dataset>_<task>/<run>.json, with the comparison that stage 7 made;
``similarity`` and ``pruning`` lie in folders of these names; ``time`` is
results/stack_time.<model>.json.
``RULES`` has the rules and their keys; each is explained where its verdict is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.errors import UserError, nearest
from espnet_ext.results.evidence import KINDS, Evidence, Results
from espnet_ext.results.pages.layers import MEASURES
from espnet_ext.results.pages.tables import SIGNIFICANT, markdown
from espnet_ext.results.schema import NOT_MEASURED

HOLDS = "holds"
DOES_NOT = "does not hold"
UNTOLD = "cannot be told at this scale"

_KEYS = ("claim", "where", "published", "rule", "evidence")


@dataclass(frozen=True)
class Claim:
    """One claim, as its file states it."""

    source: str  # file and place, for messages
    claim: str
    where: str
    published: str
    rule: str
    options: Mapping[str, Any]
    evidence: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Rule:
    """How a verdict is computed, and the keys that it takes."""

    judge: Callable[[Evidence, Mapping[str, Any]], tuple[str, str]]  # measured, verdict
    options: Mapping[str, type | tuple]  # keys of the claim; None may stand for an open end
    evidence: tuple[str, ...]  # keys of an item of evidence besides its source
    needed: tuple[str, ...] = ()  # of the options
    kinds: tuple[str, ...] = ("grid", "run")  # of evidence


def _better(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the difference is told apart and positive; not if negative.

    A claimed ``gain`` holds too only while the interval of the difference reaches it.
    """
    found = evidence.compared()
    gain = options.get("gain")
    if gain is not None and found.interval is not None and found.interval[1] < gain:
        return found.text(), DOES_NOT
    return found.text(), {1: HOLDS, -1: DOES_NOT, 0: UNTOLD}[found.direction]


def _within(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the whole interval of the difference lies from low to high; not if none of it."""
    found = evidence.compared()
    if found.interval is None:
        return found.text(), UNTOLD
    low, high = (options.get(key) for key in ("low", "high"))
    low, high = float("-inf") if low is None else low, float("inf") if high is None else high
    if low <= found.interval[0] and found.interval[1] <= high:
        return found.text(), HOLDS
    outside = found.interval[1] < low or found.interval[0] > high
    return found.text(), DOES_NOT if outside else UNTOLD


def _kept(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the interval of what lies above the share ``low`` of the other's score is positive.

    Does not hold if that interval is negative.
    """
    found = evidence.kept(options["low"])
    whole = found.than / options["low"]
    text = f"{found.of:.3f} of {whole:.3f} {found.unit}, {found.of / whole:.0%}"
    if found.interval is None:
        return f"{text} (too few to test)", UNTOLD
    low, high = found.interval
    text += f"; to {options['low']:.0%} of it {found.gain:+.3f} ({low:+.3f} to {high:+.3f})"
    return text, HOLDS if low >= 0 else DOES_NOT if high < 0 else UNTOLD


def _question(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """A question that the paper leaves open: which of the two is better, if that is told."""
    found = evidence.compared()
    winner = {1: evidence.system, -1: evidence.item["than"]}.get(found.direction)
    return found.text(), UNTOLD if winner is None else f"{winner} is better"


def _best(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if better than each of the others; not if one of them is better.

    The second is one chance in each of the others, so their p is multiplied by their number.
    """
    others = evidence.item["among"]
    found = [evidence.compared(than=other) for other in others]
    text = ", ".join(f"{name} {pair.than:.3f}" for name, pair in zip(others, found, strict=True))
    text = f"{evidence.item['system']} {found[0].of:.3f}; {text}"
    if all(pair.direction > 0 for pair in found):
        return text, HOLDS
    beaten = any(p.gain < 0 and p.p is not None and p.p * len(found) < SIGNIFICANT for p in found)
    return text, DOES_NOT if beaten else UNTOLD


def _trend(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the systems in their order rise (degree 1) or bend upwards (degree 2), told so.

    The straight or the quadratic part of each fold's curve over equal steps is tested against 0.
    """
    found = evidence.trend(options.get("degree", 1))
    return found.text(), {1: HOLDS, -1: DOES_NOT, 0: UNTOLD}[found.direction]


def _equal(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if every field is the same number in both; exact, since nothing is estimated."""
    pairs = {key: evidence.fields(key) for key in options["fields"]}
    if any(NOT_MEASURED in pair for pair in pairs.values()):
        return NOT_MEASURED, NOT_MEASURED
    text = "; ".join(f"{key} {one:,} and {other:,}" for key, (one, other) in pairs.items())
    return text, HOLDS if all(one == other for one, other in pairs.values()) else DOES_NOT


def _ratio(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the field over that of the other is from low to high; exact."""
    one, other = evidence.fields(options["field"])
    if NOT_MEASURED in (one, other) or other == 0:
        return NOT_MEASURED, NOT_MEASURED
    form = ",.1f" if isinstance(one, float) else ","
    text = f"{options['field']} {one:{form}} / {other:{form}} = {one / other:.3f}"
    return text, HOLDS if _inside(one / other, options) else DOES_NOT


def _of_sum(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the sum of the field over other runs is from low to high times that of the run."""
    own, others = evidence.field(options["field"]), evidence.of_others(options["field"])
    if NOT_MEASURED in (own, *others) or own == 0:
        return NOT_MEASURED, NOT_MEASURED
    ratio = sum(others) / own
    text = f"{options['field']}: {len(others)} together {sum(others):,.0f} / {own:,.0f}"
    return f"{text} = {ratio:.2f}", HOLDS if _inside(ratio, options) else DOES_NOT


def _inside(value: float, options: Mapping[str, Any]) -> bool:
    low, high = options.get("low"), options.get("high")
    return (low is None or value >= low) and (high is None or value <= high)


def _at_most(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if the field of one system is no larger than the limit."""
    found = evidence.field(options["field"])
    if found == NOT_MEASURED:
        return NOT_MEASURED, NOT_MEASURED
    text = f"{options['field']} {found:.3g}"
    return text, HOLDS if found <= options["limit"] else DOES_NOT


def _blocks(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if, where the stack is cut, neighbouring layers are the least alike of all.

    Without that the cut is only a place on a smooth way from the first layer to the last.
    """
    record, measure = evidence.record(), evidence.item["measure"]
    if measure not in MEASURES:
        raise UserError(f"{evidence.source}: unknown measure {nearest(measure, MEASURES)}")
    matrix = record[measure]
    cuts = record["blocks"][measure]["first_layers"]
    if cuts is None:
        return f"{len(matrix)} layers are too few to cut", UNTOLD
    beside = {i: matrix[i - 1][i] for i in range(1, len(matrix))}
    across = max(beside.pop(cut) for cut in cuts)
    ends = [0, *cuts, len(matrix)]
    spans = ", ".join(f"{a}-{b - 1}" for a, b in zip(ends, ends[1:], strict=False))
    text = f"layers {spans}; neighbours across {across:.3f}, others from {min(beside.values()):.3f}"
    return text, HOLDS if across < min(beside.values()) else DOES_NOT


def _removable(evidence: Evidence, options: Mapping[str, Any]) -> tuple[str, str]:
    """Holds if at least the share ``low`` of the layers can go at 95 % of the whole's score."""
    record, name = evidence.record(), evidence.item["order"]
    orders = {order["order"]: order for order in record["orders"]}
    if name not in orders:
        raise UserError(f"{evidence.source}: no order {nearest(name, orders)}")
    gone, layers = orders[name]["removable"], record["model"]["layers"]
    text = f"{gone} of {layers} layers, {gone / layers:.0%}"
    return text, HOLDS if gone / layers >= options["low"] else DOES_NOT


_NUMBER = (int, float)
_PAIR = ("system", "than")
_BOUNDS = {"low": (*_NUMBER, type(None)), "high": (*_NUMBER, type(None))}
RULES: dict[str, Rule] = {
    "better": Rule(_better, {"gain": _NUMBER}, _PAIR),
    "within": Rule(_within, _BOUNDS, _PAIR),
    "question": Rule(_question, {}, _PAIR),
    "best": Rule(_best, {}, ("system", "among")),
    "trend": Rule(_trend, {"degree": int}, ("systems",)),
    "equal": Rule(_equal, {"fields": list}, _PAIR, ("fields",)),
    "kept": Rule(_kept, {"low": _NUMBER}, _PAIR, ("low",), ("grid",)),
    "ratio": Rule(_ratio, {"field": str, **_BOUNDS}, _PAIR, ("field",), ("grid", "run", "time")),
    "of_sum": Rule(_of_sum, {"field": str, **_BOUNDS}, ("among",), ("field",), ("run",)),
    "at_most": Rule(_at_most, {"field": str, "limit": _NUMBER}, ("system",), ("field", "limit")),
    "blocks": Rule(_blocks, {}, ("measure",), kinds=("similarity",)),
    "removable": Rule(_removable, {"low": _NUMBER}, ("order",), ("low",), ("pruning",)),
}


def read_claims(folder: Path) -> dict[str, list[Claim]]:
    """Read and check ``<folder>/claims/*.yaml``; return the claims by paper.

    Raises:
        UserError: a file is not YAML, or a claim does not fit its rule.
    """
    found = {}
    for path in sorted((folder / "claims").glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict) or set(content) != {"paper", "claims"}:
            raise UserError(f"{path}: expected the keys paper and claims")
        claims = content["claims"]
        if not isinstance(claims, list) or not claims:
            raise UserError(f"{path}: claims must be a list with something in it")
        found[str(content["paper"])] = [
            _claim(f"{path}: claim {number}", entry) for number, entry in enumerate(claims, 1)
        ]
    return found


def _claim(source: str, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise UserError(f"{source}: expected keys and values ({', '.join(_KEYS)})")
    for key in _KEYS:
        if key not in entry:
            raise UserError(f"{source}: missing key {key}")
    for key in ("claim", "where", "published"):
        if not isinstance(entry[key], str):
            raise UserError(f"{source}: {key} must be a text, not {entry[key]!r}")
    if entry["rule"] not in RULES:
        raise UserError(f"{source}: unknown rule {nearest(str(entry['rule']), RULES)}")
    rule = RULES[entry["rule"]]
    options = {key: value for key, value in entry.items() if key not in _KEYS}
    for key, value in options.items():
        if key not in rule.options:
            raise UserError(f"{source}: unknown key {nearest(key, (*_KEYS, *rule.options))}")
        if not isinstance(value, rule.options[key]) or isinstance(value, bool):
            raise UserError(f"{source}: {key} has the wrong kind of value: {value!r}")
    for key in rule.needed:
        if key not in options:
            raise UserError(f"{source}: rule {entry['rule']} needs {key}")
    items = entry["evidence"]
    if not isinstance(items, list) or not items or not all(isinstance(i, dict) for i in items):
        raise UserError(f"{source}: evidence must be a list of keys and values")
    for item in items:
        _check_evidence(f"{source}: evidence", item, rule)
    fixed = {key: entry[key] for key in ("claim", "where", "published", "rule")}
    return Claim(source, **fixed, options=options, evidence=tuple(items))


def _check_evidence(source: str, item: Mapping[str, Any], rule: Rule) -> None:
    kinds = [kind for kind in KINDS if kind in item]
    if len(kinds) != 1 or kinds[0] not in rule.kinds:
        raise UserError(f"{source}: name one of {' and '.join(rule.kinds)}")
    # A run is its own system; what it is compared with is beside it, or its baseline.
    own = tuple(key for key in rule.evidence if kinds != ["run"] or key != "system")
    more = {"run": ("set", "method", "metric"), "grid": ("metric",)}.get(kinds[0], ())
    known = (*kinds, *own, *more)
    for key in item:
        if key not in known:
            raise UserError(f"{source}: unknown key {nearest(str(key), known)}")
    for key in own:
        if key not in item:
            raise UserError(f"{source}: missing key {key}")
        many = key in ("among", "systems")
        if not isinstance(item[key], list if many else str) or not item[key]:
            raise UserError(f"{source}: {key} has the wrong kind of value: {item[key]!r}")
    if kinds == ["run"] and "grid" in rule.kinds and {"among", "systems"} & set(own):
        raise UserError(f"{source}: this rule compares systems of a grid")


def judge(claim: Claim, item: Mapping[str, Any], results: Results) -> tuple[str, str]:
    """Return (measured, verdict) for one item of a claim's evidence.

    Raises:
        UserError: the result is there, but has no such system, set or field.
    """
    evidence = Evidence(claim.source, item, results)
    if not evidence.is_there():
        return NOT_MEASURED, NOT_MEASURED
    return RULES[claim.rule].judge(evidence, claim.options)


def claims_lines(papers: Mapping[str, Sequence[Claim]], results: Results) -> list[str]:
    """Return the section of RESULTS.md: a table a paper; nothing without papers."""
    if not papers:
        return []
    lines = [
        "## Published claims",
        "",
        "The claims are told in our words; every figure and verdict of the last two columns is "
        "computed from the committed results. A difference of two systems of a grid is that of "
        "weighted F1, mean over folds or speakers, with Student's 95 % interval and the p of a "
        "permutation test over them, seeds averaged; of a grid of recognisers or translators it is "
        "that of WER, CER, BLEU or chrF, by the bootstrap that its section explains. `better`: "
        "holds if p < 0.05 in the claimed direction; does not hold if p < 0.05 against it, or if "
        "the interval stays below a claimed gain. "
        "`within`: holds if the whole interval lies in the range, does not hold if none of it "
        "does. `best`: holds if better than each other one; does not hold if one is better (p "
        "times their number < 0.05). `trend`: the straight (degree 1) or bent (degree 2, upwards "
        "at the ends) part of the curve, told apart from 0. `equal`, `ratio` and `at_most` "
        "compare counts and measured differences or times directly. `kept`: holds if the interval "
        "of what lies above that share of the other's score is positive, does not hold if it is "
        "negative. `blocks`: holds if the neighbouring "
        "layers at the cut are the least alike of all neighbours. `removable`: holds if at least "
        "that share of the layers can go at 95 % of the whole stack's score. All else cannot be "
        "told at this scale.",
    ]
    for paper, claims in papers.items():
        rows = []
        for claim in claims:
            for item in claim.evidence:
                measured, verdict = judge(claim, item, results)
                rule = ", ".join([claim.rule, *(f"{k} {v}" for k, v in claim.options.items())])
                told = f"{claim.published} ({claim.where})"
                rows.append([claim.claim, told, rule, _name(item), measured, verdict])
        header = ["claim", "published", "rule", "evidence", "measured here", "verdict"]
        lines += ["", f"### {paper}", "", markdown(header, rows)]
    return lines


def _name(item: Mapping[str, Any]) -> str:
    if "run" in item:
        words = [item["run"], *(str(item[key]) for key in ("set", "method") if key in item)]
        return " ".join(words) + (f" against {item['than']}" if "than" in item else "")
    for kind, key in (("similarity", "measure"), ("pruning", "order")):
        if kind in item:
            return f"{kind} {item[kind]}: {item[key]}"
    kind = "time" if "time" in item else "grid"
    words = [f"{kind} {item[kind]}:"]
    if "systems" in item:
        words.append(", ".join(item["systems"]))
    else:
        words.append(item["system"])
    if "than" in item:
        words.append(f"against {item['than']}")
    if "among" in item:
        words.append(f"among {', '.join(item['among'])}")
    return " ".join(words)

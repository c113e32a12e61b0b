"""Recognisers and translators that a pretrained model as it is surpasses: evidence of little."""

from collections.abc import Mapping

from espnet_ext.errors import UserError
from espnet_ext.results.claims.base import Evidence
from espnet_ext.results.claims.evidence import GridPair, RunPair
from espnet_ext.results.store import Results


def doubt_of_untrained(item: Evidence, untrained: Mapping[str, str], results: Results) -> str:
    """Why two systems are no evidence: neither is better than what a user has without training.

    Args:
        item: two systems of a grid or two runs; anything else is not doubted.
        untrained: the run of the pretrained model as it is, by recipe.
        results: committed results.

    Returns:
        A note; empty if one of the two has a better score than that run on the same set, or that
        was not scored on it.

    Raises:
        UserError: the run is not published.
    """
    recipe = item.result.partition("/")[0]
    if recipe not in untrained or not isinstance(item, GridPair | RunPair):
        return ""
    name = f"{recipe}/{untrained[recipe]}"
    if name not in results.runs:
        raise UserError(f"untrained names run {name}, which is not published")
    found = item.compared(results)
    on = item.record(results).part if isinstance(item, GridPair) else item.score(results).set
    key, kind = found.comparison.metric, found.comparison.kind
    scores = [score for score in results.runs[name].scores if score.set == on]
    values = [score.metrics[key].value for score in scores if key in score.metrics]
    if not values:
        return ""
    best = max(values, key=lambda value: kind.direction * value)
    if any(kind.direction * (value - best) > 0 for value in (found.of, found.than)):
        return ""
    shown = " ".join(filter(None, (kind.number(best), kind.unit)))
    return f"; none is better than {untrained[recipe]} ({shown})"

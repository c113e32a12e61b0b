"""The search of an exported attention decoder; in the folder of its graphs, for transcribe.py.

Needs numpy and nothing of the project that made it.
"""

import numpy as np


def beam_search(step, token, states, most, size, end):
    """Return the ids of the most probable text that a beam finds, and their log-probability.

    Texts are compared by the log-probabilities of their tokens and of the end. A text ends after
    ``most`` tokens, or where it repeats itself; of a repetition one is kept.

    Args:
        step: a function of a token and states that returns scores (V,) and new states.
        token: the one before the text.
        states: before it.
        most: tokens of a text.
        size: texts that are extended at each step; 1: greedy search.
        end: id of the end.
    """
    best: tuple = ([], 0.0, -np.inf)  # tokens, their log-probability, and with that of the end
    live: list = [(0.0, [], token, states)]
    while live and live[0][0] > best[2]:  # what goes on can only lose
        longer: list = []
        for score, tokens, last, states in live:
            scores, after = step(last, states)
            scores = scores - scores.max()
            scores += score - np.log(np.exp(scores).sum())
            count = min(size, len(scores))
            chosen = np.argpartition(-scores, count - 1)[:count] if len(tokens) < most else [end]
            longer += [(float(scores[i]), score, tokens, int(i), after) for i in chosen]
        live = []
        for total, score, tokens, last, after in sorted(longer, key=lambda one: -one[0])[:size]:
            found = [*tokens, last]
            if last == end:
                best = max(best, (tokens, score, total), key=lambda one: one[2])
            elif repeated := loop(found):
                best = max(best, (found[:-repeated], total, total), key=lambda one: one[2])
            else:
                live.append((total, found, last, after))
    return best[0], best[1]


def loop(tokens, longest=10, times=4, least=12):
    """How many ids at the end only repeat the phrase before them; 0 if it is no loop."""
    for size in range(1, longest + 1):
        count = max(times, -(-least // size))
        tail = tokens[-size * count :]
        if len(tail) == size * count and tail[size:] == tail[:-size]:
            return size * (count - 1)
    return 0

"""The search of exported attention decoders against all texts, and against greedy steps."""

import itertools

import numpy as np
import pytest

from espnet_ext.export.runtime.run_search import beam_search, loop

START, END, TOKENS, MOST = 0, 4, 5, 4


def scorer(seed):
    """Scores of what follows a text, drawn for each text; the states are the text."""
    generator = np.random.default_rng(seed)
    known: dict[tuple, np.ndarray] = {}

    def step(token, states):
        text = () if token == START and states is None else (*states, token)
        if text not in known:
            known[text] = generator.normal(0, 2, TOKENS).astype(np.float32)
        return known[text], text

    return step


def whole_score(step, text):
    """The log-probability of a text and its end, of the same drawn scores."""
    states, token, total = None, START, 0.0
    for wanted in (*text, END):
        scores, states = step(token, states)
        total += float(scores[wanted] - np.log(np.exp(scores).sum()))
        token = wanted
    return total


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_that_holds_everything_finds_the_best_of_all_texts(seed):
    step = scorer(seed)
    texts = [t for n in range(MOST + 1) for t in itertools.product(range(END), repeat=n)]
    best = max(texts, key=lambda text: whole_score(step, text))
    tokens, score = beam_search(step, START, None, MOST, len(texts), END)
    assert tuple(tokens) == best
    ends = step(tokens[-1] if tokens else START, tuple(tokens[:-1]) if tokens else None)[0]
    end = float(ends[END] - np.log(np.exp(ends).sum()))
    assert score + end == pytest.approx(whole_score(step, best), abs=1e-4)
    narrow, _ = beam_search(step, START, None, MOST, 2, END)
    assert whole_score(step, narrow) <= whole_score(step, best)


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_of_one_is_greedy(seed):
    step, found, states, token = scorer(seed), [], None, START
    while len(found) < MOST:
        scores, states = step(token, states)
        token = int(scores.argmax())
        if token == END:
            break
        found.append(token)
    assert beam_search(step, START, None, MOST, 1, END)[0] == found


def test_a_text_that_repeats_itself_ends():
    scores = np.zeros(TOKENS, np.float32)
    scores[2] = 9
    assert beam_search(lambda token, states: (scores, states), START, None, 40, 3, END)[0] == [2]
    assert loop([2] * 12) == 11

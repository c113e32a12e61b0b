"""The transducer: its loss against the definition, its searches against brute force."""

import itertools
import math

import pytest
import torch

from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

TOKENS = ["<blank>", "<unk>", "<space>", "a", "b", "<sos/eos>"]


def build(seed: int = 1, **espnet):
    """A tiny streaming transducer with random weights, as ``espnet-ext train`` builds it."""
    from pathlib import Path

    from espnet_ext.bridge.build import build_model
    from espnet_ext.config.training import Config, Recipe

    keys = {
        "frontend": None,
        "input_size": 20,
        "normalize": None,
        "token_type": "char",
        "encoder": "streaming_transformer",
        "encoder_conf": {
            "output_size": 8,
            "attention_heads": 2,
            "linear_units": 8,
            "num_blocks": 2,
            "conv_channels": 4,
        },
        "decoder": "transducer",
        "decoder_conf": {"num_layers": 2, "hidden_size": 6, "embed_size": 5},
        "joint_net_conf": {"joint_space_size": 7},
        "model_conf": {"ctc_weight": 0.0, "report_cer": False, "report_wer": False},
    }
    config = Config(Path("train_tiny.yaml"), "tiny", Recipe(), keys | espnet)
    model = build_model(Experiment.of(config), len(TOKENS))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
        model.joint_network.lin_out.bias[0] += 0.5  # blank: otherwise every frame emits
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def negative_log_likelihood(logits, labels) -> float:
    """Graves' forward recursion (arXiv 1211.3711, equation 16) in plain Python."""
    logp = logits.double().log_softmax(-1).tolist()
    frames, states = len(logp), len(labels) + 1
    alpha = [[-math.inf] * states for _ in range(frames)]
    for t, u in itertools.product(range(frames), range(states)):
        ways = [0.0] if t == u == 0 else []
        if t:
            ways.append(alpha[t - 1][u] + logp[t - 1][u][0])
        if u:
            ways.append(alpha[t][u - 1] + logp[t][u - 1][labels[u - 1]])
        alpha[t][u] = math.log(sum(map(math.exp, ways)))
    return -(alpha[-1][-1] + logp[-1][-1][0])


def test_loss_is_the_definition():
    from espnet_ext.models.transducer import TransducerLoss

    torch.manual_seed(0)
    logits = torch.randn(3, 7, 5, 6, requires_grad=True)
    labels = torch.randint(1, 6, (3, 4))
    frames, tokens = torch.tensor([7, 4, 6]), torch.tensor([4, 2, 0])
    loss = TransducerLoss(0)(logits, labels, frames, tokens)
    alone = [
        negative_log_likelihood(logits[i, :t, : u + 1].detach(), labels[i, :u].tolist())
        for i, (t, u) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True))
    ]
    assert loss.item() == pytest.approx(sum(alone) / 3, abs=1e-5)
    loss.backward()
    step = torch.zeros_like(logits)
    step[0, 2, 1, 3] = 1e-3
    with torch.no_grad():
        up, down = (
            TransducerLoss(0)((logits + s).double(), labels, frames, tokens) for s in (step, -step)
        )
    assert logits.grad[0, 2, 1, 3].item() == pytest.approx((up - down).item() / 2e-3, abs=1e-3)
    assert logits.grad[1, 5].abs().max() == 0  # after the end


def test_loss_is_float32_under_autocast():
    from espnet_ext.models.transducer import TransducerLoss

    logits = torch.randn(1, 200, 41, 50)
    labels = torch.randint(1, 50, (1, 40))
    sizes = torch.tensor([200]), torch.tensor([40])
    exact = TransducerLoss(0)(logits, labels, *sizes)
    with torch.autocast("cpu", torch.bfloat16):
        loss = TransducerLoss(0)(logits, labels, *sizes)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_loss_on_a_gpu_is_that_of_the_cpu(autocast):
    from espnet_ext.models.transducer import TransducerLoss

    torch.manual_seed(0)
    values = torch.randn(3, 60, 12, 150)
    labels = torch.randint(1, 150, (3, 11))
    frames, tokens = torch.tensor([60, 33, 58]), torch.tensor([11, 4, 0])
    found = []
    for device in ("cpu", "cuda"):
        logits = values.to(device).requires_grad_()
        with torch.autocast(device, autocast, enabled=autocast is not None and device == "cuda"):
            loss = TransducerLoss(0)(*(x.to(device) for x in (logits, labels, frames, tokens)))
        loss.backward()
        found.append((loss.item(), values.new_tensor(logits.grad.tolist())))
    (cpu, cpu_grad), (gpu, gpu_grad) = found
    assert gpu == pytest.approx(cpu, rel=1e-5)
    assert (gpu_grad - cpu_grad).abs().max() < 1e-5


@pytest.mark.parametrize("conf", [{}, {"ctc_weight": 0.3}, {"report_cer": True}], ids=str)
def test_model_trains_and_validates(conf):
    from espnet_ext.bridge.build import build_model  # noqa: F401 (registers)

    model = build(model_conf={"report_cer": False, "report_wer": False, "ctc_weight": 0.0} | conf)
    assert model.use_transducer_decoder
    batch = (
        torch.randn(2, 60, 20),
        torch.tensor([60, 41]),
        torch.tensor([[3, 4, 2], [3, -1, -1]]),
        torch.tensor([3, 1]),
    )
    loss, stats, _ = model.train()(*batch)
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []
    with torch.no_grad():
        _, stats, _ = model.eval()(*batch)
    assert (stats.get("cer_transducer") is not None) == ("report_cer" in conf)
    encoded, lengths = model.encode(*batch[:2])
    expected = [
        negative_log_likelihood(
            model.joint_network(
                encoded[i, :t].unsqueeze(1), predictor(model, labels).unsqueeze(0)
            ).detach(),
            labels,
        )
        for i, (t, labels) in enumerate(zip(lengths.tolist(), [[3, 4, 2], [3]], strict=True))
    ]
    assert stats["loss_transducer"].item() == pytest.approx(sum(expected) / 2, abs=1e-4)


def predictor(model, labels):
    return model.decoder(torch.tensor([[0, *labels]]))[0]


def test_predictor_of_espnet_is_the_default():
    from espnet2.asr.decoder.transducer_decoder import TransducerDecoder

    from espnet_ext.models.transducer import Predictor

    conf = {"vocab_size": 9, "num_layers": 2, "hidden_size": 6}
    ours, stock = Predictor(**conf), TransducerDecoder(**conf)
    stock.load_state_dict(ours.state_dict(), strict=True)
    labels = torch.randint(0, 9, (2, 5))
    assert torch.equal(ours(labels), stock(labels))
    with pytest.raises(UserError, match="num_layers"):
        Predictor(9, num_layers=0)


def encoded(model, lengths):
    torch.manual_seed(3)
    return torch.randn(len(lengths), max(lengths), 8) * 2, torch.tensor(lengths)


def test_greedy_is_that_of_espnet(model):
    from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer

    from espnet_ext.models.transducer_search import GreedySearch

    stock = BeamSearchTransducer(model.decoder, model.joint_network, beam_size=1)
    x, lengths = encoded(model, [40, 1, 23, 33])
    search = GreedySearch(model)
    found = search.results(search.advance(x, lengths, search.start(4)))
    for row, length in enumerate(lengths):
        with torch.no_grad():
            expected = stock(x[row, :length])[0].yseq[1:]
        assert list(found[row].tokens) == expected
    assert 5 < len(found[0].tokens) < 40
    assert all(f < 40 for f in found[0].frames) and len(found[0].frames) == len(found[0].tokens)


def brute_force(model, x) -> dict[tuple, float]:
    """Log-probability of every token sequence, at most one token a frame, over all alignments."""
    found: dict[tuple, list[float]] = {}
    size = len(TOKENS)
    for path in itertools.product(range(size), repeat=len(x)):
        tokens, score = [], 0.0
        for frame, label in zip(x, path, strict=True):
            out = predictor(model, tokens)[-1]
            score += model.joint_network(frame, out).log_softmax(-1)[label].item()
            if label:
                tokens.append(label)
        found.setdefault(tuple(tokens), []).append(score)
    return {k: math.log(sum(map(math.exp, v))) for k, v in found.items()}


@torch.no_grad()
def test_wide_beam_finds_the_best_of_all(model):
    from espnet_ext.models.transducer_search import BeamSearch

    x, lengths = encoded(model, [3, 2])
    search = BeamSearch(model, beam_size=6)
    search.beam = 300  # more than there are sequences: nothing is pruned
    found = search.results(search.advance(x, lengths, search.start(2)))
    for row, length in enumerate(lengths):
        scores = brute_force(model, x[row, :length])
        best = max(scores, key=scores.__getitem__)
        assert found[row].tokens == best
        assert found[row].score == pytest.approx(scores[best], abs=1e-4)


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@torch.no_grad()
def test_chunks_and_batch_change_nothing(model, kind):
    from espnet_ext.models.transducer_search import BeamSearch, GreedySearch

    search = GreedySearch(model) if kind == "greedy" else BeamSearch(model, 3)
    lengths = [30, 7, 19]
    x, all_lengths = encoded(model, lengths)
    together = search.results(search.advance(x, all_lengths, search.start(3)))
    for row, length in enumerate(lengths):
        state = search.start(1)
        committed: list[int] = []
        for start in range(0, length, 4):
            piece = x[row : row + 1, start : min(start + 4, length)]
            state = search.advance(piece, torch.tensor([piece.shape[1]]), state)
            committed += search.commit(state)[0].tokens
        (alone,) = search.results(state)
        assert (*committed, *alone.tokens) == together[row].tokens
        assert alone.score == pytest.approx(together[row].score, abs=1e-4)
    assert any(len(t.tokens) > 3 for t in together)


@torch.no_grad()
def test_the_score_of_a_long_stream_costs_no_precision(model):
    from espnet_ext.models.transducer_search import BeamSearch

    search = BeamSearch(model, 3)
    x, lengths = encoded(model, [30])
    (alone,) = search.results(search.advance(x, lengths, search.start(1)))
    state, found = search.start(1), []
    state.scores[:, 0] = -1e6  # after hours
    for piece in x.split(3, dim=1):
        found += search.commit(state)[0].tokens
        assert state.scores.max() == 0
        state = search.advance(piece, torch.tensor([piece.shape[1]]), state)
    (best,) = search.results(state)
    assert (*found, *best.tokens) == alone.tokens
    assert best.score + 1e6 == pytest.approx(alone.score, abs=1e-4)


@torch.no_grad()
def test_hypotheses_that_always_disagree_are_decided_at_last(model, monkeypatch):
    from espnet_ext.models.transducer_search import OPEN_TOKENS, BeamSearch

    search = BeamSearch(model, 2)
    frames = 0

    def logits(encoded, predicted):
        """Token 3 or 4, nearly equal, in the first frame; 3 in all others."""
        nonlocal frames
        found = torch.full((len(predicted), len(TOKENS)), -20.0)
        found[:, 3] = 5.0
        found[:, 4] = -20.0 if frames else 4.9
        frames += 1
        return found

    monkeypatch.setattr(search, "logits", logits)
    state, committed = search.start(1), 0
    lengths = []
    for _ in range(75):
        state = search.advance(torch.zeros(1, 4, 8), torch.tensor([4]), state)
        (certain,) = search.commit(state)
        assert set(certain.tokens) <= {3}
        assert len(certain.frames) == len(certain.tokens)
        committed += len(certain.tokens)
        lengths.append(max(map(len, state.tokens[0])))
        assert lengths[-1] == max(map(len, state.frames[0])) <= OPEN_TOKENS
        (best,) = search.results(state)
        assert committed + len(best.tokens) == 4 * len(lengths)
        if 4 * len(lengths) <= OPEN_TOKENS:
            assert committed == 0  # up to the limit the disagreement stays open
    assert max(lengths) == OPEN_TOKENS


@torch.no_grad()
def test_the_best_hypothesis_decides_beyond_the_limit(model, monkeypatch):
    from espnet_ext.models import transducer_search

    monkeypatch.setattr(transducer_search, "OPEN_TOKENS", 4)
    search = transducer_search.BeamSearch(model, 3)

    def commit(*tokens):
        state = search.start(1)
        state.scores = torch.tensor([[-1.0, -2.0, -3.0]])
        state.tokens = [list(tokens)]
        state.frames = [[tuple(range(len(t))) for t in tokens]]
        (certain,) = search.commit(state)
        alive = (state.scores[0] > -math.inf).tolist()
        return certain.tokens, [t for t, a in zip(state.tokens[0], alive, strict=True) if a]

    # None is too long: what all begin with is certain, nothing is dropped.
    assert commit((3, 3, 2), (3, 4), (3, 4, 2, 2, 2)) == (
        (3,),
        [(3, 2), (4,), (4, 2, 2, 2)],
    )
    # Six tokens: two of the best are decided, and the last begins otherwise.
    assert commit((3, 4, 2), (3, 4, 2, 2, 2, 2), (4, 4)) == ((3, 4), [(2,), (2, 2, 2, 2)])
    # The best has nothing that could be decided: the one that is too long is dropped.
    assert commit((), (4,), (3, 3, 3, 3, 3)) == ((), [(), (4,)])


def test_beam_of_one_is_at_most_as_probable_as_wider_ones(model):
    from espnet_ext.models.transducer_search import BeamSearch

    x, lengths = encoded(model, [25])
    scores = []
    for beam in (1, 2, 4, 6):
        search = BeamSearch(model, beam)
        scores.append(search.results(search.advance(x, lengths, search.start(1)))[0].score)
    assert scores[-1] > scores[0]


def test_wrong_model_and_beam_are_one_line(model):
    from espnet_ext.models.transducer_search import BeamSearch, GreedySearch

    with pytest.raises(UserError, match="no transducer"):
        GreedySearch(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="beam_size"):
        BeamSearch(model, 0)

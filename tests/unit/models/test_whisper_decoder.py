"""The decoder ``whisper`` gives what transformers gives: prompts, masks, caches, both searches."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.label_smoothing_loss import (
    LabelSmoothingLoss,
)

from espnet_ext.data import tokenizer
from espnet_ext.errors import UserError
from espnet_ext.models.attention_search import attention_greedy, loop
from espnet_ext.models.whisper_decoder import WhisperDecoder
from tests.fixtures import foundation

NEAR = {"atol": 2e-4, "rtol": 1e-5}
PROMPT = ("<|startoftranscript|>", "<|translate|>", "<|notimestamps|>")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A folder, its model as transformers has it, and its tokens."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(5)
    model = foundation.make(folder)
    return folder, model, tokenizer.listed(*tokenizer.source_files(str(folder)))


def built(folder, tokens, **conf):
    decoder = WhisperDecoder(len(tokens), 32, path=str(folder), **conf).eval()
    decoder.use_tokens(tokens)
    return decoder


@pytest.fixture
def decoder(case):
    return built(case[0], case[2])


def ids(tokens, *words):
    return [tokens.index(word) for word in words]


def encoded(*frames):
    torch.manual_seed(1)
    x = torch.randn(len(frames), max(frames), 32)
    for row, count in enumerate(frames):
        x[row, count:] = 9.0  # whatever the padding holds
    return x, torch.tensor(frames)


def transformers_scores(model, x, tokens):
    """Of one utterance, of every next token."""
    h = model.model.decoder(input_ids=tokens, encoder_hidden_states=x).last_hidden_state
    return model.proj_out(h)


@torch.no_grad()
def test_scores_are_those_of_transformers_whatever_the_batch(case, decoder):
    _, model, tokens = case
    x, frames = encoded(40, 25)
    sos, end = decoder.use_tokens(tokens)
    assert (sos, end) == tuple(ids(tokens, "<|startoftranscript|>", "<|endoftext|>"))
    texts = torch.tensor([[sos, 65, 70, 71], [sos, 80, end, end]])
    scores, counts = decoder(x, frames, texts, torch.tensor([4, 2]))
    assert counts.tolist() == [4, 2]
    for row, size in enumerate((4, 2)):
        prompt = ids(tokens, "<|startoftranscript|>", "<|notimestamps|>")
        whole = torch.tensor([[*prompt, *texts[row, 1:size].tolist()]])
        wanted = transformers_scores(model, x[row : row + 1, : frames[row]], whole)[0, 1:]
        torch.testing.assert_close(scores[row, :size], wanted, **NEAR)


@torch.no_grad()
def test_the_language_of_each_utterance_is_the_one_that_the_model_hears(tmp_path):
    torch.manual_seed(9)
    model = foundation.make(tmp_path, multilingual=True)
    tokens = tokenizer.listed(*tokenizer.source_files(str(tmp_path)))
    decoder = built(tmp_path, tokens, language="detect", task="translate")
    x, frames = encoded(*[30, 22, 17, 28, 9, 12, 25, 14])
    inside = torch.arange(30) < frames.unsqueeze(1)
    languages = ids(tokens, "<|en|>", "<|fr|>")
    start = torch.tensor([ids(tokens, "<|startoftranscript|>")])

    def scored():
        each = zip(x.split(1), frames.tolist(), strict=True)
        return torch.cat([transformers_scores(model, one[:, :n], start)[0] for one, n in each])

    # As random weights are, all utterances sound alike: the languages get the embeddings of two
    # tokens of which each is the likelier one somewhere.
    over = scored()[:, 65:66] > scored()
    other = int((over.any(0) & ~over.all(0)).nonzero()[0])
    for table in (model.model.decoder.embed_tokens.weight, decoder.decoder.embed_tokens.weight):
        table[languages] = table[[65, other]]
    heard = [languages[int(scores.argmax())] for scores in scored()[:, languages]]
    assert set(heard) == set(languages)
    prompts = decoder.prompts(x, inside)
    assert prompts[:, 1].tolist() == heard
    assert all([p[0], *p[2:]] == ids(tokens, *PROMPT) for p in prompts.tolist())
    # Training, greedy search and ESPnet's beam use them.
    texts = torch.tensor([[decoder.prompt[0], 66]]).repeat(8, 1)
    scores, _ = decoder(x, frames, texts, torch.full((8,), 2))
    found = attention_greedy(decoder, x, frames, [3] * 8)
    for row, count in enumerate(frames.tolist()):
        one = x[row : row + 1, :count]
        whole = torch.cat([prompts[row : row + 1], texts[row : row + 1, 1:]], 1)
        wanted = transformers_scores(model, one, whole)[0, -2:]
        torch.testing.assert_close(scores[row], wanted, **NEAR)
        single, state = decoder.score(texts[row, :1], None, one[0])
        torch.testing.assert_close(single, wanted[0].log_softmax(-1), **NEAR)
        then, _ = decoder.score(texts[row], state, one[0])
        torch.testing.assert_close(then, wanted[1].log_softmax(-1), **NEAR)
        assert found[row][0] == int(wanted[0].argmax())


def test_the_prompt_names_language_and_task(tmp_path):
    foundation.make(tmp_path, multilingual=True)
    tokens = tokenizer.listed(*tokenizer.source_files(str(tmp_path)))
    decoder = built(tmp_path, tokens, language="fr", task="translate")
    names = ["<|startoftranscript|>", "<|fr|>", "<|translate|>", "<|notimestamps|>"]
    assert [tokens[i] for i in decoder.prompt] == names
    x, _ = encoded(12, 9)
    assert decoder.prompts(x, None).tolist() == [[*decoder.prompt]] * 2
    with pytest.raises(UserError, match=r"lacks the language 'fx'; did you mean 'fr'\?"):
        built(tmp_path, tokens, language="fx")
    with pytest.raises(UserError, match="knows many languages: give language"):
        built(tmp_path, tokens)
    with pytest.raises(UserError, match="unknown task 'transcribed'; did you mean 'transcribe'"):
        built(tmp_path, tokens, language="fr", task="transcribed")


@pytest.mark.parametrize("over", [{"language": "fr"}, {"task": "translate"}])
def test_a_model_of_english_alone(case, over):
    with pytest.raises(UserError, match="transcribes English alone: leave out language and task"):
        built(case[0], case[2], **over)


def stepwise(decoder, x, most):
    """Greedy search of one utterance, every token from the whole text before it."""
    found = []
    while len(found) < most:
        text = torch.tensor([[decoder.prompt[0], *found]])
        scores, _ = decoder(x, torch.tensor([x.shape[1]]), text, torch.tensor([len(text[0])]))
        if (token := int(scores[0, -1].argmax())) == decoder.end:
            break
        found.append(token)
        if repeated := loop(found):
            return found[:-repeated]
    return found


@torch.no_grad()
def test_greedy_with_a_cache_and_in_a_batch_is_greedy_without(decoder):
    x, frames = encoded(40, 25, 33, 7)
    most = [20, 9, 15, 0]
    found = attention_greedy(decoder, x, frames, most)
    for row, count in enumerate(frames.tolist()):
        one = x[row : row + 1, :count]
        assert found[row] == stepwise(decoder, one, most[row])
        assert attention_greedy(decoder, one, frames[row : row + 1], most[row : row + 1]) == [
            found[row]
        ]
    assert any(len(set(text)) > 2 for text in found)  # the models says something


@torch.no_grad()
def test_greedy_is_transformers_generate(case, decoder):
    from transformers import GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    _, model, _ = case
    for count in (40, 12):
        x, frames = encoded(count)
        made = GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=x),
            decoder_input_ids=torch.tensor([decoder.prompt]),
            num_beams=1,
            do_sample=False,
            max_new_tokens=18,
        )
        wanted = made[0, len(decoder.prompt) :].tolist()
        wanted = wanted[: wanted.index(decoder.end)] if decoder.end in wanted else wanted
        (found,) = attention_greedy(decoder, x, frames, [18])
        repeated = next((k for k in range(len(wanted)) if loop(wanted[:k])), None)
        if repeated is not None:
            wanted = wanted[: repeated - loop(wanted[:repeated])]
        assert found == wanted


def test_a_text_that_repeats_itself_stops_and_keeps_one_phrase():
    assert loop([5] * 11) == 0  # no no no ...
    assert loop([1, *([5] * 12)]) == 11
    assert loop([1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3]) == 0
    assert loop([1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3]) == 10
    assert loop([*range(10)] * 4) == 30
    assert loop([*range(11)] * 4) == 0


@torch.no_grad()
def test_a_search_ends_where_the_speech_is_too_short_for_more(decoder):
    assert decoder.most_tokens(1.0) == 14
    assert decoder.most_tokens(1.0, rate=2.0) == 10
    assert decoder.most_tokens(3600.0) == 58  # positions for them and the prompt
    x, _ = encoded(25)
    state, text = None, [decoder.prompt[0]]
    for _ in range(decoder.most_tokens(0.5)):
        scores, state = decoder.score(torch.tensor(text), state, x[0])
        assert scores.exp().sum() == pytest.approx(1, abs=1e-4)
        text.append(65 + len(text))
    scores, _ = decoder.score(torch.tensor(text), state, x[0])
    assert int(scores.argmax()) == decoder.end
    assert (scores < -1e9).sum() == len(scores) - 1


@torch.no_grad()
def test_the_scores_of_a_beam_are_those_of_its_texts(decoder):
    """Texts that begin alike part, and one that was second takes both places."""
    x, _ = encoded(30)
    sos = decoder.prompt[0]
    _, (state,) = decoder.batch_score(torch.tensor([[sos]]), [None], x)
    two = torch.tensor([[sos, 66], [sos, 80]])
    both = x.expand(2, -1, -1)
    _, states = decoder.batch_score(two, [state, state], both)
    texts = torch.tensor([[sos, 80, 67], [sos, 80, 90]])
    scores, _ = decoder.batch_score(texts, [states[1], states[1]], both)
    wanted, _ = decoder(both, torch.tensor([30, 30]), texts, torch.tensor([3, 3]))
    torch.testing.assert_close(scores, wanted[:, -1].log_softmax(-1), **NEAR)


def test_a_model_by_its_name_and_one_in_parts(case, decoder, tmp_path):
    folder, model, tokens = case
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for path in (f"hub:{folder}", str(tmp_path)):
        again = WhisperDecoder(len(tokens), 32, path=path).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in decoder.state_dict().items())
    assert tokenizer.listed(*tokenizer.source_files(f"hub:{folder}")) == tokens


def test_weights_that_are_missing_or_only_pickled_are_refused(case, tmp_path):
    folder, model, tokens = case
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load it: .*model\.safetensors"):
        WhisperDecoder(len(tokens), 32, path=str(tmp_path))
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.decoder.layers.1.fc2.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"they lack decoder\.layers\.1\.fc2\.weight"):
        WhisperDecoder(len(tokens), 32, path=str(tmp_path))


@torch.no_grad()
def test_without_the_folder_it_is_built_from_its_architecture(case, decoder):
    folder, _, tokens = case
    conf = decoder.portable_conf({"path": str(folder), "task": "transcribe"})
    again = WhisperDecoder(len(tokens), 32, **conf).eval()
    again.load_state_dict(decoder.state_dict())
    again.use_tokens(tokens)
    x, frames = encoded(20)
    texts = torch.tensor([[decoder.prompt[0], 65]])
    counts = torch.tensor([2])
    assert torch.equal(again(x, frames, texts, counts)[0], decoder(x, frames, texts, counts)[0])


def test_a_text_that_is_too_long_is_refused(decoder):
    x, frames = encoded(20)
    with pytest.raises(UserError, match="a text of 62 tokens with its prompt is longer"):
        decoder(x, frames, torch.full((1, 61), 65), torch.tensor([61]))


def test_what_does_not_fit_is_refused(case):
    folder, _, tokens = case
    with pytest.raises(UserError, match=r"has 28\d tokens, the token list 50: it is of another"):
        WhisperDecoder(50, 32, path=str(folder))
    with pytest.raises(UserError, match="has the width 32, the encoder 48: they are not of one"):
        WhisperDecoder(len(tokens), 48, path=str(folder))
    with pytest.raises(UserError, match="the encoder 64: leave out encoder_conf: outputs"):
        WhisperDecoder(len(tokens), 64, path=str(folder))
    with pytest.raises(UserError, match="give the path of a model, or an architecture"):
        WhisperDecoder(len(tokens), 32)
    with pytest.raises(UserError, match="has decoder_layers 2, decoder_conf: architecture says 3"):
        WhisperDecoder(len(tokens), 32, path=str(folder), architecture={"decoder_layers": 3})
    decoder = WhisperDecoder(len(tokens), 32, path=str(folder))
    with pytest.raises(UserError, match=r"no <\|startoftranscript\|> in the token list"):
        decoder.use_tokens(["<blank>", "<unk>", "a"])


@torch.no_grad()
def test_texts_of_an_utterance_use_its_frames_as_if_each_had_a_copy(decoder):
    x, frames = encoded(40, 25)
    inside = torch.arange(40) < frames.unsqueeze(1)
    first = decoder.prompts(x, inside)
    before, once = decoder.step(first, x, inside, None)
    copies = [one.repeat_interleave(3, 0) for one in (first, x, inside)]
    _, copied = decoder.step(*copies, None)
    texts = torch.tensor([0, 0, 0, 1, 1, 1])
    once.self_attention_cache.batch_select_indices(texts)
    torch.manual_seed(3)
    for _ in range(3):
        tokens = torch.randint(0, 30, (6, 1))
        found, once = decoder.step(tokens, x, inside, once)
        wanted, copied = decoder.step(tokens, *copies[1:], copied)
        torch.testing.assert_close(found, wanted, **NEAR)
    assert len(once.cross_attention_cache.layers[0].keys) == 2
    assert torch.equal(decoder.step(first, x, inside, None)[0], before)  # nothing stays behind


def test_ids_without_a_token_are_never_found(case, decoder):
    folder, _, tokens = case
    wanted = decoder.step(*_start(decoder), None, None)[0]
    best = int(wanted[0].argmax())
    cut = built(folder, [t if k != best else f"<|unused{k}|>" for k, t in enumerate(tokens)])
    found = cut.step(*_start(cut), None, None)[0]
    others = torch.arange(len(tokens)) != best
    assert torch.equal(found[:, others], wanted[:, others])
    assert torch.equal(found[:, best], wanted[:, others].amin(-1))
    assert cut.state_dict().keys() == decoder.state_dict().keys()
    found.log_softmax(-1)[0, tokens.index("a")].backward()
    row = cut.decoder.embed_tokens.weight.grad[best]
    assert row.abs().max() == 0 and cut.decoder.embed_tokens.weight.grad.abs().max() > 0


def test_label_smoothing_does_not_push_all_scores(case):
    folder, _, tokens = case
    cut = built(
        folder, [t if k % 3 else f"<|unused{k}|>" for k, t in enumerate(tokens[:-7])] + tokens[-7:]
    )
    h = torch.randn(1, 4, 32)
    raw = (h @ cut.decoder.embed_tokens.weight.T).detach().requires_grad_()
    cut.decoder.embed_tokens.weight = torch.nn.Parameter(torch.eye(len(tokens)))
    scores = cut.token_scores(raw)
    loss = LabelSmoothingLoss(len(tokens), -1, 0.1, True)(scores, torch.tensor([[1, 2, 4, 5]]))
    loss.backward()
    assert raw.grad.abs().max() > 1e-3
    torch.testing.assert_close(raw.grad.sum(-1), torch.zeros(1, 4), atol=1e-6, rtol=0)


def _start(decoder):
    x = encoded(20)[0]
    return decoder.prompts(x, None), x

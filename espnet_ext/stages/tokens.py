"""Stage 3: the token list: characters, SentencePiece, a pretrained model's tokens, or classes."""

import io
from collections import Counter
from pathlib import Path

from espnet_ext.config.pretrained import PRETRAINED, require_token_source
from espnet_ext.data import tokenizer as pretrained
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, nearest
from espnet_ext.experiment import Experiment
from espnet_ext.files import DONE, Stamp, atomic_path, write_text

SPACE = "<space>"


def write_tokens(experiment: Experiment) -> None:
    """Write the token list of the training set, or its classes.

    Raises:
        UserError: no text, one that SentencePiece refuses, or classes that do not fit the config.
    """
    if experiment.recipe.task == "cls":
        _write_classes(experiment)
        return
    if experiment.config.token_type == PRETRAINED:
        _write_pretrained(experiment)
        _write_common(experiment)
        return
    text = experiment.require_references(experiment.recipe.train_set)
    out = experiment.token_folder
    stamp = Stamp(out / DONE, {"kind": out.name}, [text])
    if stamp.is_current():
        print(f"tokens: {out} is up to date")
        return
    sentences = list(read_table(text).values())
    if not any(sentences):
        raise UserError(f"{text}: no transcript in it; run stage 1")
    if experiment.config.token_type == "char":
        found = character_tokens(sentences)
        outputs = [experiment.token_list]
    else:
        found = train_sentencepiece(sentences, experiment, out / "bpe.model")
        outputs = [experiment.token_list, out / "bpe.model"]
    # ESPnet's convention: blank first, sos/eos last.
    listed = ["<blank>", "<unk>", *found, "<sos/eos>"]
    write_text(experiment.token_list, "".join(f"{token}\n" for token in listed))
    stamp.write(outputs)
    print(f"tokens: {len(listed)} tokens in {out}")


def _write_pretrained(experiment: Experiment) -> None:
    """Write the tokens of a pretrained model, by its ids, and its tokenizer.json.

    Raises:
        UserError: the tokenizer is missing, damaged, or of another model; or CTC cannot write the
            transcripts.
    """
    out = experiment.token_folder
    tokenizer, config = pretrained.source_files(require_token_source(experiment.config))
    stamp = Stamp(out / DONE, {"kind": out.name}, [tokenizer, config])
    if stamp.is_current():
        _refuse_blanks(experiment, pretrained.Tokenizer(out))
        print(f"tokens: {out} is up to date")
        return
    found = pretrained.listed(tokenizer, config)
    copied, merges = out / pretrained.TOKENIZER, experiment.recipe.merges
    if merges is None:
        write_text(copied, tokenizer.read_text(encoding="utf-8"))
    else:
        write_text(copied, pretrained.first_merges(tokenizer, merges))
        found = pretrained.listed(copied, config)
    _refuse_blanks(experiment, pretrained.Tokenizer(out))
    write_text(experiment.token_list, "".join(f"{token}\n" for token in found))
    stamp.write([experiment.token_list, copied])
    print(f"tokens: {len(found)} tokens in {out}")
    if merges is not None:
        _print_cut(experiment, tokenizer.parent, out)
    _print_shared(experiment, found, pretrained.Tokenizer(out))


def _write_common(experiment: Experiment) -> None:
    """Write the tokens of the training text, if a family's ``rare`` asks for them.

    Raises:
        UserError: there is no text.
    """
    if not experiment.family_options.get("rare"):
        return
    out, name = experiment.token_folder, experiment.recipe.train_set
    path = out / f"common_{name}.txt"
    text = experiment.require_references(name)
    stamp = Stamp(out / f".common_{name}.json", {}, [text, out / pretrained.TOKENIZER])
    if stamp.is_current():
        return
    tokenizer = pretrained.Tokenizer(out)
    used = {token for line in read_table(text).values() for token in tokenizer.tokens(line)}
    names = experiment.token_list.read_text(encoding="utf-8").splitlines()
    common = pretrained.common_tokens(names, used)
    write_text(path, "".join(f"{token}\n" for token in common))
    stamp.write([path])
    print(f"tokens: {len(common)} of {len(names)} are common, by {name}: {path}")


def _print_shared(
    experiment: Experiment, names: list[str], tokenizer: pretrained.Tokenizer
) -> None:
    """Print how many tokens a family's ``letters`` keep, and what that costs the training text."""
    letters = experiment.family_options.get("letters")
    text = experiment.references(experiment.recipe.train_set)
    if not letters or not text.is_file():
        return
    kept = pretrained.spelled_with(names, letters)
    known = {name for name, keep in zip(names, kept, strict=True) if keep}
    used = [token for line in read_table(text).values() for token in tokenizer.tokens(line)]
    lost = sum(token not in known for token in used) / max(len(used), 1)
    print(
        f"tokens: letters keep {sum(kept)} of {len(kept)} rows below 32 bits; "
        f"{lost:.2%} of the tokens of {experiment.recipe.train_set} share one row"
    )


def _print_cut(experiment: Experiment, whole: Path, cut: Path) -> None:
    """Print what fewer merges cost the training text: its words that need more tokens."""
    text = experiment.references(experiment.recipe.train_set)
    if not text.is_file():
        return
    before, after = pretrained.Tokenizer(whole), pretrained.Tokenizer(cut)
    words = Counter(word for line in read_table(text).values() for word in line.split())
    sizes = [(n, len(before.tokens(word)), len(after.tokens(word))) for word, n in words.items()]
    longer = sum(n for n, old, new in sizes if new > old) / max(words.total(), 1)
    print(
        f"tokens: with {experiment.recipe.merges} merges {longer:.1%} of the words of "
        f"{experiment.recipe.train_set} are written in more tokens"
    )


def _refuse_blanks(experiment: Experiment, tokenizer: pretrained.Tokenizer) -> None:
    """Raise UserError if CTC is trained and a transcript has its blank, in ESPnet the id 0."""
    if experiment.ctc_weight <= 0:
        return
    path = experiment.require_references(experiment.recipe.train_set)
    (blank,) = tokenizer.names([0])
    for utterance, text in read_table(path).items():
        if blank in tokenizer.tokens(text):
            raise UserError(
                f"{path}: {utterance} has the token {blank!r}, which is CTC's blank: choose "
                "model_conf: ctc_weight: 0.0, or transcripts without it"
            )


def _write_classes(experiment: Experiment) -> None:
    """Write the classes of the training set, <unk> last as ESPnet's classifier wants it.

    Raises:
        UserError: another number of classes than the config says, or a set has a class that the
            training set has not.
    """
    out, name = experiment.token_folder, experiment.recipe.train_set
    sets = labelled_sets(experiment.data, name)
    if name not in sets:
        raise UserError(f"no data/{name}/label; run stage 1")
    stamp = Stamp(out / DONE, {"train": name}, sets.values())
    if stamp.is_current():
        print(f"tokens: {out} is up to date")
        return
    labels = {other: read_table(path) for other, path in sets.items()}
    classes = sorted(set(labels[name].values()))
    if len(classes) != experiment.recipe.classes:
        raise UserError(
            f"data/{name}/label has {len(classes)} classes ({', '.join(classes)}), but the config "
            f"says recipe: classes: {experiment.recipe.classes}"
        )
    for other, table in labels.items():
        for utterance, label in table.items():
            if label not in classes:
                raise UserError(
                    f"data/{other}/label: {utterance} has a class that data/{name} lacks: "
                    f"{nearest(label, classes)}"
                )
    write_text(out / "tokens.txt", "".join(f"{token}\n" for token in [*classes, "<unk>"]))
    stamp.write([out / "tokens.txt"])
    print(f"tokens: {len(classes)} classes in {out}: {', '.join(classes)}")


def labelled_sets(data: Path, train_set: str) -> dict[str, Path]:
    """The label files of the sets that are labelled as the training set is, by name.

    A recipe may have several kinds of classes: the sets of keyword_train are keyword_dev,
    keyword_test and so on, those of train all that belong to no such kind.
    """
    # The list of classes is itself a folder data/token_list/label.
    sets = {p.parent.name: p for p in sorted(data.glob("*/label")) if p.is_file()}
    kinds = {name.removesuffix("train") for name in sets if name.endswith("_train")}
    kind = train_set.removesuffix("train") if train_set.endswith("_train") else ""
    others = tuple(kinds - {kind})
    return {n: p for n, p in sets.items() if n.startswith(kind) and not n.startswith(others)}


def character_tokens(sentences: list[str]) -> list[str]:
    """Characters by falling frequency, blank written as ESPnet writes it."""
    counts = Counter(character for sentence in sentences for character in sentence)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return [SPACE if c == " " else c for c in ranked]


def train_sentencepiece(sentences: list[str], experiment: Experiment, model: Path) -> list[str]:
    """Train SentencePiece, write ``model``, return its pieces without control symbols."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            model_type=experiment.recipe.sentencepiece,
            vocab_size=experiment.recipe.vocabulary,
            character_coverage=1.0,
            # It skips longer sentences, without a word.
            max_sentence_length=max(len(sentence.encode()) for sentence in sentences) + 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise UserError(
            f"{experiment.config.path}: SentencePiece cannot make recipe: vocabulary: "
            f"{experiment.recipe.vocabulary} pieces from this text: {reason}"
        ) from None
    with atomic_path(model) as temporary:
        temporary.write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    all_pieces = [pieces.id_to_piece(i) for i in range(len(pieces))]
    return [p for p in all_pieces if p not in ("<unk>", "<s>", "</s>")]

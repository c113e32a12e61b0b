"""Stage 3: make the token list: characters, SentencePiece (BPE or unigram), or classes.

Reads the transcripts (of task st the translations), or labels, of the training set only. Writes
data/token_list/<kind>/tokens.txt, and bpe.model for SentencePiece.

Example:
  espnet-ext tokens conf/train_hrf_conformer_xs.yaml
"""

import argparse
import io
from collections import Counter
from pathlib import Path

from espnet_ext.cli.checked import checked_config
from espnet_ext.config.training import Config
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import Stamp, atomic_path, write_text

SPACE = "<space>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")


def run(args: argparse.Namespace) -> None:
    """Train the tokenizer and write the token list."""
    config = checked_config(args.config)
    if config.recipe.task == "cls":
        list_classes(config)
        return
    text = target_text(config, config.recipe.train_set)
    out = token_dir(config)
    stamp = Stamp(out / ".done.json", {"kind": out.name}, [text])
    if stamp.is_current():
        print(f"tokens: {out} is up to date")
        return
    sentences = list(read_table(text).values())
    if not any(sentences):
        raise UserError(f"{text}: no transcript in it; run stage 1")
    if config.espnet.get("token_type") == "char":
        tokens = character_tokens(sentences)
        outputs = [out / "tokens.txt"]
    else:
        tokens = train_sentencepiece(sentences, config, out / "bpe.model")
        outputs = [out / "tokens.txt", out / "bpe.model"]
    # ESPnet's convention: blank first, sos/eos last.
    listed = ["<blank>", "<unk>", *tokens, "<sos/eos>"]
    write_text(out / "tokens.txt", "".join(f"{token}\n" for token in listed))
    stamp.write(outputs)
    print(f"tokens: {len(listed)} tokens in {out}")


def target_text(config: Config, name: str) -> Path:
    """The texts of a set that are learnt and scored.

    Raises:
        UserError: there are none; of a translation it says which languages there are.
    """
    path = Path("data") / name / config.recipe.target_file
    if not path.is_file():
        known = [p.suffix[1:] for p in path.parent.glob("text.*") if p.is_file()]
        if config.recipe.task == "st" and known:
            raise UserError(
                f"no {path}: recipe: target: {nearest(str(config.recipe.target), known)} "
                "(stage 1 makes the languages)"
            )
        raise UserError(f"no {path}; run stage 1")
    return path


def list_classes(config: Config) -> None:
    """Write the classes of the training set, <unk> last as ESPnet's classifier wants it.

    Raises:
        UserError: another number of classes than the config says, or a set has a class that the
            training set has not.
    """
    out, name = token_dir(config), config.recipe.train_set
    sets = labelled_sets(name)
    if name not in sets:
        raise UserError(f"no data/{name}/label; run stage 1")
    stamp = Stamp(out / ".done.json", {"train": name}, sets.values())
    if stamp.is_current():
        print(f"tokens: {out} is up to date")
        return
    labels = {other: read_table(path) for other, path in sets.items()}
    classes = sorted(set(labels[name].values()))
    if len(classes) != config.recipe.classes:
        raise UserError(
            f"data/{name}/label has {len(classes)} classes ({', '.join(classes)}), but the config "
            f"says recipe: classes: {config.recipe.classes}"
        )
    for other, table in labels.items():
        for utterance, label in table.items():
            if label not in classes:
                raise UserError(
                    f"data/{other}/label: {utterance} has a class of which data/{name} has none: "
                    f"{nearest(label, classes)}"
                )
    write_text(out / "tokens.txt", "".join(f"{token}\n" for token in [*classes, "<unk>"]))
    stamp.write([out / "tokens.txt"])
    print(f"tokens: {len(classes)} classes in {out}: {', '.join(classes)}")


def labelled_sets(train_set: str) -> dict[str, Path]:
    """The label files of the sets that are labelled as the training set is, by name.

    A recipe may have several kinds of classes: the sets of keyword_train are keyword_dev,
    keyword_test and so on, those of train all that belong to no such kind.
    """
    # The list of classes is itself a folder data/token_list/label.
    sets = {p.parent.name: p for p in sorted(Path("data").glob("*/label")) if p.is_file()}
    kinds = {name.removesuffix("train") for name in sets if name.endswith("_train")}
    own = train_set.removesuffix("train") if train_set.endswith("_train") else ""
    others = tuple(kinds - {own})
    return {n: p for n, p in sets.items() if n.startswith(own) and not n.startswith(others)}


def classes_of(config: Config) -> list[str]:
    """The classes that stage 3 listed.

    Raises:
        UserError: it has not run.
    """
    path = token_dir(config) / "tokens.txt"
    if not path.is_file():
        raise UserError(f"no {path}; run stage 3")
    return path.read_text(encoding="utf-8").split()[:-1]


def token_dir(config: Config) -> Path:
    """Folder of the token list that the config uses."""
    if config.recipe.task == "cls":
        return Path("data/token_list") / config.recipe.labels
    kind = config.espnet.get("token_type", "bpe")
    language = f".{config.recipe.target}" if config.recipe.task == "st" else ""
    if kind == "char":
        return Path(f"data/token_list/char{language}")
    if kind != "bpe":
        raise UserError(f"{config.path}: token_type must be char or bpe, not {kind}")
    recipe = config.recipe
    return Path(f"data/token_list/{recipe.sentencepiece}{recipe.vocabulary}{language}")


def character_tokens(sentences: list[str]) -> list[str]:
    """Characters by falling frequency, blank written as ESPnet writes it."""
    counts = Counter(character for sentence in sentences for character in sentence)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return [SPACE if c == " " else c for c in ranked]


def train_sentencepiece(sentences: list[str], config: Config, model: Path) -> list[str]:
    """Train SentencePiece, write ``model``, return its pieces without control symbols."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            model_type=config.recipe.sentencepiece,
            vocab_size=config.recipe.vocabulary,
            character_coverage=1.0,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise UserError(
            f"{config.path}: SentencePiece cannot make recipe: vocabulary: "
            f"{config.recipe.vocabulary} pieces from this text: {reason}"
        ) from None
    with atomic_path(model) as temporary:
        temporary.write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    all_pieces = [pieces.id_to_piece(i) for i in range(len(pieces))]
    return [p for p in all_pieces if p not in ("<unk>", "<s>", "</s>")]

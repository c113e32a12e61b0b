"""The table of tokens in Whisper's graphs: embeddings, and scores of the next token."""

from typing import Any

import numpy as np
import torch

from espnet_ext.errors import UserError
from espnet_ext.export.graphs.graph import INT32, INT64, Graph
from espnet_ext.export.graphs.products import in_products
from espnet_ext.export.whisper.model import TEXT, Whisper
from espnet_ext.formats.bits import Quantised
from espnet_ext.methods.codes import Coded


def token_rows(g: Graph, model: Whisper, known: str) -> str:
    """Rows of the table (1, n) for a token of the runtime: all of the prompt at the first call.

    If the model detects languages the first call has the start alone, and the rest of the prompt
    follows the language.
    """
    row = g.op("Sub", g.op("Cast", "token", to=INT64), g.ints(TEXT))
    prompts = [len(model.rows) + 1 + place for place in range(len(model.prompt))]
    text = g.op("Less", "token", g.constant(TEXT, np.int32))
    if model.languages:
        heard = g.op("GreaterOrEqual", row, g.ints(len(model.rows)))
        languages = g.op("Add", row, g.ints(1 + len(prompts)))  # they follow the prompt
        row = g.op("Where", heard, languages, row)
        row = g.op("Where", text, g.ints(prompts[0]), row)
        return g.op("Concat", row, _rows_if(g, heard, prompts[2:]), axis=1)
    row = g.op("Where", text, g.ints(prompts[-1]), row)
    first = g.op("Equal", known, g.ints(0))
    return g.op("Concat", _rows_if(g, first, prompts[:-1]), row, axis=1)


def _rows_if(g: Graph, condition: str, rows: list[int]) -> str:
    """Rows (1, n) where a condition of one element holds, none elsewhere."""
    holds = g.op("Reshape", g.op("Cast", condition, to=INT64), g.ints(1))
    count = g.op("Mul", holds, g.ints(len(rows)))
    return g.slice(g.constant([rows], np.int64), g.ints(0), count, 1)


def embed_and_score(g: Graph, model: Whisper, tokens: str) -> tuple[str, Any]:
    """Embeddings (1, n, D) of rows, and a function of (1, 1, D) that scores text, end, languages.

    Rows: the tokens of texts, the end, the prompt, the languages.
    """
    ids = torch.tensor([*model.rows, model.end, *model.prompt, *model.languages])
    weight = model.weight(f"{model.decoder}embed_tokens.weight")
    if isinstance(weight, Coded):
        found, scores = _coded_table(g, _chosen_rows(weight, ids), tokens, model.width)
    elif isinstance(weight, Quantised):
        scale = weight.scale[ids] if weight.scale.dim() else weight.scale
        chosen = Quantised(weight.ints[ids], scale, weight.bits)
        found = g.embedded(chosen, tokens)
        scores = lambda last: g.linear(last, chosen)  # noqa: E731
    else:
        numbers = model.tensor(f"{model.decoder}embed_tokens.weight")[ids]
        across = g.constant(numbers.T.numpy())  # as products read it: a session has it once
        found = g.op("Transpose", g.op("Gather", across, tokens, axis=1), perm=[1, 2, 0])
        scores = lambda last: g.op("MatMul", last, across)  # noqa: E731
    count = len(model.rows)
    end_of_prompt = count + 1 + len(model.prompt)

    def score(last: str) -> tuple[str, str, str]:
        found = scores(last)
        text = g.slice(found, g.ints(0), g.ints(count), 2)
        stop = g.slice(found, g.ints(count), g.ints(count + 1), 2)
        return text, stop, g.slice(found, g.ints(end_of_prompt), None, 2)

    return found, score


def _chosen_rows(table: Coded, ids: torch.Tensor) -> list[Coded]:
    """The rows ``ids`` of a table as one or two, of which all rare tokens come before the others.

    Raises:
        UserError: the end or the prompt is among the rare tokens.
    """
    if table.kept is None:
        return [Coded(table.codes[ids], table.books)]
    common = table.kept[ids]
    found = [Coded(table.codes[(table.kept.long().cumsum(0) - 1)[ids[common]]], table.books)]
    if isinstance(table.rest, Coded):
        count = int((~common).sum())
        if common[:count].any():
            raise UserError("export: a token that controls decoding is among the rare ones")
        others = (~table.kept).long().cumsum(0) - 1
        found = [*_chosen_rows(table.rest, others[ids[~common]]), *found]
    return found


def _coded_table(g: Graph, parts: list[Coded], tokens: str, width: int) -> tuple[str, Any]:
    """Embeddings (1, n, D) of rows of a table of one or two parts, and what scores all rows."""
    scores = [_table_scores(g, part) for part in parts]
    last = parts[-1]
    if len(parts) == 1:
        return g.op("Reshape", g.rows(last, tokens), g.ints(1, -1, width)), scores[0]
    first = len(parts[0].codes)
    places = [
        g.op("Min", tokens, g.ints(first - 1)),
        g.op("Max", g.op("Sub", tokens, g.ints(first)), g.ints(0)),
    ]
    rare, common = (
        g.op("Reshape", g.rows(part, place), g.ints(1, -1, width))
        for part, place in zip(parts, places, strict=True)
    )
    is_rare = g.op("Reshape", g.op("Less", tokens, g.ints(first)), g.ints(1, -1, 1))
    found = g.op("Where", is_rare, rare, common)
    return found, lambda x: g.op("Concat", *(score(x) for score in scores), axis=-1)


def _table_scores(g: Graph, table: Coded) -> Any:
    """A function that multiplies with a table (rows, D) of codes.

    Codes can only be looked up, and the whole table in float32 would be most of the memory. So a
    session puts 8-bit numbers in their place when it is made. Those of a part of the columns share
    a scale, by which what is multiplied is multiplied first.
    """
    if g.products == "float32":
        across = g.op("Transpose", g.matrix(table), perm=[1, 0])
        return lambda last: g.op("MatMul", last, across)
    parts, _, size = table.books.shape
    scale = table.books.abs().amax((1, 2)).clamp_min(1e-9) / 127  # of each part
    whole = (table.books / scale.view(-1, 1, 1)).round().to(torch.int8)
    books = in_products(whole, g.products).numpy()
    codes = g.op("Transpose", g.constant(table.codes.numpy()), perm=[1, 0])
    places = g.op("Cast", codes, to=INT32)
    # All first numbers of the parts, then all second ones: a session computes least so.
    numbers = [
        g.op("GatherElements", g.constant(books[..., k]), places, axis=1) for k in range(size)
    ]
    ints = g.op("Concat", *numbers, axis=0)
    widths = g.constant(scale.view(1, 1, -1, 1).numpy())
    one = g.op("Expand", g.constant([1], np.float32), g.ints(len(table.codes)))

    def scores(last: str) -> str:
        x = g.op("Mul", g.op("Reshape", last, g.ints(1, -1, parts, size)), widths)
        x = g.op("Reshape", g.op("Transpose", x, perm=[0, 1, 3, 2]), g.ints(1, -1, parts * size))
        return g.bytewise(x, ints, one, len(table.codes))

    return scores

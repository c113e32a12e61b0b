"""Weights of a family's members that follow from those of others; in its folder, for transcribe.py.

Needs numpy alone. See ``graphs.weight_file`` for how a folder says what follows from what.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

WEIGHTS, COMPUTED, RECIPES = "weights.bin", ".weights.bin", ".weights.json"
NEAR = 0.501  # fine steps to half-way, at most, where a coarse integer may be the other one


def assembled(folder, member):
    """The weights of a member that follow from those of others, as its graphs read them."""
    recipes = json.loads((folder / f"{member}{RECIPES}").read_text(encoding="utf-8"))
    weights = np.memmap(folder / WEIGHTS, np.uint8, "r")
    content = bytearray(max((one["at"] + one["bytes"] for one in recipes), default=0))
    for one in recipes:
        content[one["at"] : one["at"] + one["bytes"]] = weight_from(one, weights)
    return bytes(content)


def weight_from(recipe, weights):
    """The bytes of a weight that follows from another one in the bytes of a family's weights.

    It is a part of that, or its numbers by scales of groups of inputs, rounded
    (see ``traced.rounded``).
    Of those that may have been rounded before, a bit mask selects which become the other integer.
    """
    values = _stored(recipe["from"], weights)
    if "scale" not in recipe:
        part = values[tuple(slice(size) for size in recipe["part"])]
        return pairs(part) if recipe["from"][1] == "int4" else part.tobytes()
    outputs, inputs = recipe["part"]
    rows = values.astype(np.float32) - np.float32(recipe.get("from_zero", 0))
    rows = (rows.T if recipe["across"] else rows.reshape(len(rows), -1))[:outputs, :inputs]
    finer = _stored(recipe["from_scale"], weights)[:outputs] if "from_scale" in recipe else None
    x, y, near = rounded(rows, _stored(recipe["scale"], weights), finer)
    if "moved" in recipe:
        bits = np.unpackbits(_stored(recipe["moved"], weights), bitorder="little")
        moved = near.copy()
        moved[near] = bits[: near.sum()]
        y[moved] += np.sign(x[moved] - y[moved])
    ints = np.clip(y, -recipe["limit"], recipe["limit"]).astype(np.int16) + recipe["zero"]
    ints = ints.reshape(outputs, inputs).T if recipe["turn"] else ints
    return pairs(ints) if recipe["pairs"] else ints.astype(np.uint8).tobytes()


def rounded(rows, scale, finer=None):
    """Numbers (o, i), or integers of the scale ``finer``, by a scale (o, groups), in float32.

    Returns them (o, groups, inputs of a group), rounded, and where finer integers leave a doubt.
    """
    scale, rows = scale[:, :, None].astype(np.float32), rows.astype(np.float32)
    if finer is None:
        x = rows.reshape(len(rows), scale.shape[1], -1) / scale
        return x, np.round(x), np.zeros(x.shape, bool)
    ratio = finer[:, :, None].astype(np.float32) / scale
    x = rows.reshape(len(rows), ratio.shape[1], -1) * ratio
    y = np.round(x)
    return x, y, np.abs(np.abs(x - y) - np.float32(0.5)) < ratio * np.float32(NEAR)


def _stored(place, weights):
    """An array in the bytes of a family's weights."""
    offset, kind, shape = place
    count = int(np.prod(shape))
    if kind != "int4":
        return np.frombuffer(weights, kind, count, offset).reshape(shape)
    data = np.frombuffer(weights, np.uint8, (count + 1) // 2, offset)
    ints = np.stack([data & 15, data >> 4], 1).reshape(-1)[:count]
    return ((ints ^ 8).astype(np.int8) - 8).reshape(shape)


def pairs(ints):
    """Integers of 4 bits, two to a byte, the first in the lower half."""
    low = (ints.reshape(-1) & 15).astype(np.uint8)
    low = np.append(low, np.uint8(0)) if len(low) % 2 else low
    return (low[0::2] | low[1::2] << 4).tobytes()


def assemble(folder, member):
    """Write the file of a member's computed weights: any runtime reads its graphs then.

    Returns its path. Raises ValueError if the weights are not those that were exported.
    """
    settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    wanted = settings.get("members", {})[member]["computed"]
    content = assembled(folder, member)
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError(f"{member}: its weights are not those that were exported")
    path = folder / Path(f"{member}{COMPUTED}").name
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)
    return path

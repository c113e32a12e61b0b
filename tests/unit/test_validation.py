"""Values of files: each mistake is one line that names the place and the nearest key."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, Tag

from espnet_ext.errors import UserError
from espnet_ext.validation import (
    Count,
    Interval,
    Items,
    Json,
    Named,
    Number,
    Strict,
    Text,
    or_word,
    parse,
    read_model,
)


class Cat(Strict):
    kind: Literal["cat"]
    lives: Count


class Dog(Strict):
    kind: Literal["dog"]
    name: Text


class House(Strict):
    pets: Items[Annotated[Cat | Dog, Field(discriminator="kind")]]
    rooms: Named[Number]
    heat: Interval | None
    rent: Annotated[
        Annotated[Count, Tag("[or unknown]")] | Annotated[Literal["unknown"], Tag("[word]")],
        or_word("unknown"),
    ]
    notes: Json = None


HOUSE = {
    "pets": [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "Rex"}],
    "rooms": {"hall": 20, "attic": 7.5},
    "heat": [18, 21.5],
    "rent": "unknown",
}


def test_a_value_that_fits_keeps_its_numbers():
    house = parse(House, HOUSE, "here")
    assert house.model_dump(mode="json") == HOUSE | {"notes": None}
    assert [type(size) for size in house.rooms.values()] == [int, float]
    assert house.heat == (18, 21.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pets": [{"kind": "cta", "lives": 9}]}, "unknown pets[0].kind 'cta'; did you mean 'cat'"),
        ({"pets": [{"lives": 9}]}, "missing key pets[0].kind"),
        (
            {"pets": [{"kind": "cat", "live": 9}]},
            "unknown key 'live'; did you mean 'lives'? in pets",
        ),
        (
            {"pets": [{"kind": "cat", "lives": -1}]},
            "pets[0].lives must be a whole number, 0 or more",
        ),
        ({"pets": []}, "pets must have something in it, not []"),
        ({"rooms": {"hall": "big"}}, "rooms.hall must be a number, not 'big'"),
        ({"rooms": {"hall": True}}, "rooms.hall must be a number, not True"),
        ({"rooms": {}}, "rooms must have something in it"),
        ({"heat": [21, 18]}, "heat must be [low, high], low end first, not [21, 18]"),
        ({"heat": [21]}, "heat must be [low, high], two finite numbers"),
        ({"rent": 1.5}, "rent must be a whole number, not 1.5 (or 'unknown')"),
        ({"notes": {"a": [float("nan")]}}, "notes.a[0] must be a finite number"),
        ({"notes": {"a": {1: 2}}}, "notes.a has the key 1, which is not a string"),
        ({"hose": 1}, "unknown key 'hose'"),
    ],
)
def test_each_mistake_is_one_line(change, says):
    with pytest.raises(UserError) as caught:
        parse(House, HOUSE | change, "here", "try again")
    assert str(caught.value).startswith(f"here: {says}")
    assert str(caught.value).endswith("; try again") and "\n" not in str(caught.value)


def test_a_value_of_another_kind_and_a_file_that_is_no_json(tmp_path):
    with pytest.raises(UserError, match="here: it must be keys and values, not 3"):
        parse(House, 3, "here")
    path = tmp_path / "house.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"house\.json: not valid JSON; write it again"):
        read_model(House, path, "write it again")


@pytest.mark.parametrize(
    "value", ["x\n<script>", "a\0b", "a\rb", "", 10**400, float("inf"), [[1]], None]
)
def test_values_of_records_are_one_line_or_finite(value):
    from espnet_ext.validation import Number, Strict, Text, parse

    class Made(Strict):
        text: Text
        number: Number

    with pytest.raises(UserError, match=r"^file: (text|number) must be"):
        parse(Made, {"text": value, "number": value}, "file")

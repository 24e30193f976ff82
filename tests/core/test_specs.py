"""Specifications round-trip through text and through plain data, whatever names and values they hold."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.specs import Spec, parse_chain, parse_list, parse_value

pytestmark = pytest.mark.property

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
WORDS = st.text(string.ascii_letters + "_/.:", min_size=1, max_size=12)
VALUES = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(),
    st.floats(allow_nan=False),
    WORDS.filter(lambda word: parse_value(word) == word),
)
SPECS = st.builds(Spec, type=NAMES, args=st.dictionaries(NAMES, VALUES, max_size=4))


def same(left: Any, right: Any) -> bool:
    """Equal and of the same type: True is not 1."""
    return [(s.type, {k: (type(v), v) for k, v in s.args.items()}) for s in left] == [
        (s.type, {k: (type(v), v) for k, v in s.args.items()}) for s in right
    ]


@given(st.lists(SPECS, min_size=1, max_size=4))
def test_text_round_trips(specs: list[Spec]) -> None:
    assert same(parse_chain("+".join(map(str, specs))), specs)
    assert same(parse_list(",".join(map(str, specs))), specs)


@given(st.lists(SPECS, min_size=1, max_size=3))
def test_blanks_do_not_matter(specs: list[Spec]) -> None:
    spaced = " + ".join(str(s).replace("(", " ( ").replace("=", " = ").replace(")", " ) ") for s in specs)
    assert same(parse_chain(spaced), specs)


@given(SPECS)
def test_plain_data_round_trips(spec: Spec) -> None:
    plain = json.loads(json.dumps(spec.to_plain()))
    assert same([Spec(**plain)], [spec])


@given(NAMES)
def test_a_bare_name_is_a_call_without_arguments(name: str) -> None:
    assert parse_chain(name) == (Spec(type=name, args={}),) == parse_chain(f"{name}()")


@given(NAMES)
def test_dashes_are_underscores(name: str) -> None:
    assert parse_chain(f"a{name.replace('_', '-')}")[0].type == f"a{name}"

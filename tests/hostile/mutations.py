"""Hypothesis strategies for damaged bytes, odd values and odd texts."""

import json
from collections.abc import Callable

from hypothesis import strategies as st

NUMBERS = ["0", "-1", "1e999", "NaN", "-Infinity", "99999999999999999999999999", "1e-320", "0.1", "1" * 5000]
DEEP = "[" * 100_000
TEXTS = [
    "", " ", "..", "../../etc/passwd", "/etc/passwd", "~", "a\0b", "a\nb", "a\tb", "\U0001f600", "\ud800", "\x1b[31m",
    "x" * 10_000, "%s%n", "${seed}", "${oc.env:HOME}", "!!python/object/apply:os.system ['touch /tmp/pwned']",
    "__class__", "null", "None", "true", "CON", "$(touch /tmp/pwned)", "'", '"', "\\", "\u202e", "ß" * 300,
]  # fmt: skip
PIECES = [
    *(number.encode() for number in NUMBERS), DEEP.encode(), b"{", b"}", b"[]", b'""', b"null", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\0" * 64, b"\n", b"\r", b'"', b",", b"!!python/object/apply:os.system [id]", b"\x80\x04c",
    b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.", *(text.encode("utf-8", "surrogatepass") for text in TEXTS),
]  # fmt: skip


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Gives `data` with up to four bits flipped, parts cut out or doubled, pieces put in; or garbage."""
    places = st.integers(0, len(data))
    change: st.SearchStrategy[tuple[Callable[..., bytes], int, object]] = st.one_of(
        st.tuples(st.just(_flip), places, st.integers(0, 7)),
        st.tuples(st.just(_cut), places, st.integers(1, max(len(data), 2))),
        st.tuples(st.just(_double), places, st.integers(1, 64)),
        st.tuples(st.just(_put), places, st.sampled_from(PIECES)),
        st.tuples(st.just(_replace), places, st.sampled_from(PIECES)),
    )

    def apply(changes: list[tuple[Callable[..., bytes], int, object]]) -> bytes:
        result = data
        for function, place, argument in changes:
            result = function(result, min(place, len(result)), argument)
        return result

    return st.one_of(st.lists(change, min_size=1, max_size=4).map(apply), st.binary(max_size=200))


def json_values() -> st.SearchStrategy[object]:
    """Gives any JSON value, odd numbers and texts among them."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([json.loads(n) for n in NUMBERS[:-1]]),
        st.sampled_from(TEXTS), st.text(max_size=20),
    )  # fmt: skip
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=6
    )


@st.composite
def changed_json(draw: st.DrawFn, value: object) -> object:
    """Gives a JSON value in which one part is another value, missing, or renamed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        other = dict(value)
        how = draw(st.integers(0, 7))
        if how == 0:
            del other[key]
        elif how == 1:
            other[draw(st.sampled_from(TEXTS))] = other.pop(key)
        else:
            other[key] = draw(changed_json(value[key]))
        return other
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(changed_json(value[place])), *value[place + 1 :]]
    return draw(json_values())


def _flip(data: bytes, place: int, bit: int) -> bytes:
    place = min(place, len(data) - 1)
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :] if data else data


def _cut(data: bytes, place: int, length: int) -> bytes:
    return data[:place] + data[place + length :]


def _double(data: bytes, place: int, length: int) -> bytes:
    return data[: place + length] + data[place:]


def _put(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place:]


def _replace(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]

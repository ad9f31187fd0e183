from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.data import writer as writer_module
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.errors import DataError

records = st.lists(
    st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 499), min_size=1, max_size=9)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(records=records, vocab_size=st.sampled_from([500, 70_000]), block=st.sampled_from([1, 10, 1 << 20]))
def test_what_is_written_in_any_order_is_read_back_by_user(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, list[int]]], vocab_size: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch, StoreWriter(folder, vocab_size=vocab_size) as writer:
        patch.setattr(writer_module, "GATHER_TOKENS", block)
        for user, tokens in records:
            writer.add(user, tokens)
        store = TokenStore(writer.finish(fingerprint="f"))
    expected: dict[str, list[list[int]]] = {}
    for user, tokens in records:
        expected.setdefault(user, []).append(tokens)
    found = {store.user_id(u): [r.tolist() for r in store.records(u)] for u in range(store.num_users)}
    assert found == expected
    assert list(found) == list(expected)
    assert store.tokens_per_user.tolist() == [sum(map(len, own)) for own in expected.values()]


def test_bulk_and_single_records_give_the_same_store(tmp_path: Path) -> None:
    lengths, tokens = [2, 3, 1], np.arange(6)
    with StoreWriter(tmp_path / "bulk", vocab_size=10) as bulk:
        bulk.add_users(["a", "b"], [2, 1], lengths, tokens)
        one = TokenStore(bulk.finish(fingerprint="f"))
    with StoreWriter(tmp_path / "single", vocab_size=10) as single:
        for user, piece in zip("aab", np.split(tokens, [2, 5]), strict=True):
            single.add(user, piece)
        other = TokenStore(single.finish(fingerprint="f"))
    assert [r.tolist() for u in range(2) for r in one.records(u)] == [
        r.tolist() for u in range(2) for r in other.records(u)
    ]


@pytest.mark.parametrize("tokens", [[10], [-1], []])
def test_tokens_outside_the_vocabulary_and_empty_records_are_refused(tmp_path: Path, tokens: list[int]) -> None:
    with StoreWriter(tmp_path, vocab_size=10) as writer, pytest.raises(ValueError, match="must be"):
        writer.add("a", tokens)


def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, vocab_size=10) as writer, pytest.raises(ValueError, match="add up"):
        writer.add_users(["a"], [2], [3], [1, 2, 3])


def test_a_writer_without_records_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, vocab_size=10) as writer, pytest.raises(DataError, match="the corpus has no records"):
        writer.finish(fingerprint="f")


def test_a_folder_whose_writer_never_finished_is_no_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, vocab_size=10) as writer:
        writer.add("a", [1, 2])
    with pytest.raises(DataError, match=r"store\.json: not a readable token store"):
        TokenStore(tmp_path)


@pytest.mark.parametrize(("vocab_size", "bytes_a_token"), [(65_536, 2), (65_537, 4)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(tmp_path: Path, vocab_size: int, bytes_a_token: int) -> None:
    with StoreWriter(tmp_path, vocab_size=vocab_size) as writer:
        writer.add("a", [vocab_size - 1] * 3)
        folder = writer.finish(fingerprint="f")
    assert (folder / "tokens.bin").stat().st_size == 3 * bytes_a_token
    assert TokenStore(folder).records(0)[0].tolist() == [vocab_size - 1] * 3

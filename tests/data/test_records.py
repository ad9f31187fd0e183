import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.data.perplexity import CachedScores, PerplexityRecords
from fedsim_userdp.data.records import (
    LongestRecords,
    RandomChunks,
    RandomRecords,
    RecordSelector,
    ShortestRecords,
)
from fedsim_userdp.data.store import open_store
from fedsim_userdp.settings import TokenSettings

from .sources import TEXTS, WordTokenizer, memory_corpus, random_records


def mean_token(records: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([float(np.mean(record)) for record in records])


SELECTORS: dict[str, RecordSelector] = {
    "random": RandomRecords(),
    "longest": LongestRecords(),
    "shortest": ShortestRecords(),
    "highest_perplexity": PerplexityRecords(True, mean_token),
    "lowest_perplexity": PerplexityRecords(False, mean_token),
    "highest_of_a_pool": PerplexityRecords(True, mean_token, pool=3),
    "random_chunk": RandomChunks(window=8),
}

users = st.builds(
    lambda num, seed: random_records(num, np.random.default_rng(seed)),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
)


@pytest.fixture(params=SELECTORS)
def selector(request: pytest.FixtureRequest) -> RecordSelector:
    return SELECTORS[request.param]


def as_lists(records: Sequence[np.ndarray]) -> list[list[int]]:
    return [record.tolist() for record in records]


@settings(max_examples=40, deadline=None)
@given(records=users, k=st.integers(1, 15), seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(SELECTORS)))
def test_k_is_never_exceeded_and_the_same_seed_repeats(records: list[np.ndarray], k: int, seed: int, name: str) -> None:
    chosen, again = (SELECTORS[name].select(records, k, np.random.default_rng(seed)) for _ in range(2))
    assert len(chosen) <= k
    assert as_lists(chosen) == as_lists(again)


@settings(max_examples=40, deadline=None)
@given(records=users, k=st.integers(1, 15), name=st.sampled_from(sorted(set(SELECTORS) - {"random_chunk"})))
def test_chosen_records_are_distinct_records_of_the_user_as_many_as_allowed(
    records: list[np.ndarray], k: int, name: str
) -> None:
    chosen = SELECTORS[name].select(records, k, np.random.default_rng(0))
    positions = [next(i for i, record in enumerate(records) if record is one) for one in chosen]
    assert len(set(positions)) == min(k, len(records))


def test_is_a_selector(selector: RecordSelector) -> None:
    assert isinstance(selector, RecordSelector)


@pytest.mark.parametrize("k", [0, -1])
def test_a_bound_below_one_is_refused(selector: RecordSelector, k: int) -> None:
    with pytest.raises(ValueError, match="at least 1, got"):
        selector.select([np.arange(3)], k, np.random.default_rng(0))


def test_a_user_without_records_contributes_none(selector: RecordSelector) -> None:
    assert selector.select([], 4, np.random.default_rng(0)) == []


def test_editing_user_b_never_changes_what_user_a_uses(selector: RecordSelector, tmp_path: Path) -> None:
    chosen = []
    for name, bob in {
        "plain": TEXTS["bob"],
        "edited": ["x " * 50, "Completely different.", "More of it, too."],
    }.items():
        corpus = memory_corpus({"bob": bob, **{user: TEXTS[user] for user in ("ann", "cid")}}, key=name)
        store = open_store(corpus, WordTokenizer(), TokenSettings(window=4, min_words=0, min_tokens=2), tmp_path)
        user = next(user for user in range(store.num_users) if store.user_id(user) == "cid")
        chosen.append(as_lists(selector.select(store.records(user), 2, np.random.default_rng(5))))
    assert chosen[0] == chosen[1]


def test_random_draws_every_record_equally_often() -> None:
    # 4,000 draws of 2 of 5: each record's count has mean 1,600 and stddev 31; 6 stddevs, failure < 1e-7.
    records = [np.array([i, i]) for i in range(5)]
    generator = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(4000):
        for record in RandomRecords().select(records, 2, generator):
            counts[record[0]] += 1
    assert (abs(counts - 1600) < 190).all()


def test_longest_and_shortest_take_the_extremes_and_earlier_ones_among_equals() -> None:
    records = [np.full(length, number) for number, length in enumerate([3, 9, 9, 2, 3])]
    generator = np.random.default_rng(0)
    assert [r[0] for r in LongestRecords().select(records, 3, generator)] == [1, 2, 0]
    assert [r[0] for r in ShortestRecords().select(records, 2, generator)] == [3, 0]


def test_perplexity_takes_the_extremes_and_puts_scores_that_are_not_finite_last() -> None:
    records = [np.array([n, n]) for n in range(5)]
    scored = {True: [3, 1], False: [1, 3]}
    for highest, expected in scored.items():
        selector = PerplexityRecords(highest).bind(lambda _: np.array([np.nan, 1.0, np.inf, 9.0, -np.inf]))
        assert [r[0] for r in selector.select(records, 2, np.random.default_rng(0))] == expected


def test_perplexity_without_a_scorer_or_with_a_wrong_number_of_scores_is_refused() -> None:
    records = [np.arange(2)] * 3
    with pytest.raises(ValueError, match="bind"):
        PerplexityRecords().select(records, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        PerplexityRecords().bind(lambda _: np.zeros(2)).select(records, 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("num_records", "k", "pool", "num_scored"), [(100_000, 4, 2000, 2000), (50, 9, 5, 9), (5, 2, 5, 5)]
)
def test_no_more_than_a_pool_of_a_users_records_is_scored(num_records: int, k: int, pool: int, num_scored: int) -> None:
    records, scored = [np.array([n, n]) for n in range(num_records)], []

    def score(some: Sequence[np.ndarray]) -> np.ndarray:
        scored.append(len(some))
        return mean_token(some)

    chosen = PerplexityRecords(True, score, pool).select(records, k, np.random.default_rng(0))
    assert scored == [num_scored]
    numbers = [int(record[0]) for record in chosen]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) == k


def test_a_pool_follows_from_the_users_generator_and_reaches_every_record() -> None:
    records = [np.array([n, n]) for n in range(20)]
    selector = PerplexityRecords(True, mean_token, pool=5)
    chosen = [[int(r[0]) for r in selector.select(records, 2, np.random.default_rng(seed))] for seed in range(200)]
    assert chosen[7] == [int(r[0]) for r in selector.select(records, 2, np.random.default_rng(7))]
    assert {number for some in chosen for number in some} >= set(range(8, 20))
    with pytest.raises(ValueError, match="pool must be a whole number of records, at least 1, got 0"):
        PerplexityRecords(pool=0)


def test_binding_leaves_the_original_unbound() -> None:
    selector = PerplexityRecords()
    assert selector.bind(mean_token).score_fn is mean_token
    assert selector.score_fn is None


@settings(max_examples=60, deadline=None)
@given(records=users, k=st.integers(1, 6), window=st.integers(2, 30), seed=st.integers(0, 1000))
def test_chunks_are_contiguous_disjoint_windows_of_the_joined_text(
    records: list[np.ndarray], k: int, window: int, seed: int
) -> None:
    numbered, start = [], 0
    for record in records:
        numbered.append(np.arange(start, start + len(record)))
        start += len(record)
    chunks = RandomChunks(window).select(numbered, k, np.random.default_rng(seed))
    total = sum(map(len, records))
    assert len(chunks) == min(k, total // window if total >= window else bool(records))
    for chunk in chunks:
        assert len(chunk) == min(window, total)
        assert (np.diff(chunk) == 1).all()
    joined = np.concatenate(chunks) if chunks else np.empty(0)
    assert len(np.unique(joined)) == len(joined)


def test_chunks_reach_every_token() -> None:
    records = [np.arange(0, 13), np.arange(13, 27)]
    generator = np.random.default_rng(0)
    seen = {
        int(token) for _ in range(300) for chunk in RandomChunks(8).select(records, 2, generator) for token in chunk
    }
    assert seen == set(range(27))


def test_cached_scores_are_computed_once_per_user_and_survive_the_process(tmp_path: Path) -> None:
    calls = []

    def score(records: Sequence[np.ndarray]) -> np.ndarray:
        calls.append(len(records))
        return mean_token(records)

    ann, bob = random_records(4, np.random.default_rng(0)), random_records(3, np.random.default_rng(1))
    scores = CachedScores(score, tmp_path, corpus="c", model="m")
    first = scores(ann)
    again = CachedScores(score, tmp_path, corpus="c", model="m")
    assert (again(ann) == first).all()
    assert (again(bob) == mean_token(bob)).all()
    assert calls == [4, 3]


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_the_score_cache_is_readable_by_its_user_only(tmp_path: Path) -> None:
    scores = CachedScores(lambda records: np.zeros(len(records)), tmp_path, corpus="c", model="m")
    assert scores.path.stat().st_mode & 0o077 == 0


def test_cached_scores_are_apart_by_corpus_and_model(tmp_path: Path) -> None:
    paths = {CachedScores(mean_token, tmp_path, corpus=c, model=m).path for c in "ab" for m in "ab"}
    assert len(paths) == 4


def broken_page(content: bytes) -> bytes:
    return content[:100] + b"\xff" * (len(content) - 100)


@pytest.mark.parametrize("damaged", [lambda content: b"not a database at all" * 100, broken_page, lambda content: b""])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_score_cache_that_is_no_database_is_started_anew(
    tmp_path: Path, damaged: Callable[[bytes], bytes], is_open: bool
) -> None:
    records = [np.arange(3), np.arange(1, 4)]
    scores = CachedScores(mean_token, tmp_path, corpus="c", model="m")
    scores(records)
    scores.path.write_bytes(damaged(scores.path.read_bytes()))
    if not is_open:
        scores = CachedScores(mean_token, tmp_path, corpus="c", model="m")
    assert scores(records).tolist() == [1.0, 2.0]
    unused = CachedScores(None, tmp_path, corpus="c", model="m")  # type: ignore[arg-type]
    assert unused(records).tolist() == [1.0, 2.0]
    assert scores.path.stat().st_mode & 0o077 == 0


def test_a_score_cache_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    scores = CachedScores(mean_token, tmp_path, corpus="c", model="m")
    scores.path.unlink()
    scores.path.mkdir()
    with pytest.raises(ValueError, match=r"scores-.*\.sqlite: score cache cannot be used .*; delete it"):
        scores([np.arange(3)])


@pytest.mark.parametrize("losses", [b"", bytes(16), bytes(32), "text", 7.0, np.full(4, np.nan).tobytes()])
def test_kept_scores_that_are_not_what_was_written_are_computed_anew(tmp_path: Path, losses: object) -> None:
    records = [np.arange(3), np.arange(1, 4)]
    scores = CachedScores(mean_token, tmp_path, corpus="c", model="m")
    scores(records)
    with closing(sqlite3.connect(scores.path)) as connection, connection:
        connection.execute("UPDATE scores SET losses = ?", (losses,))
    assert scores(records).tolist() == [1.0, 2.0]

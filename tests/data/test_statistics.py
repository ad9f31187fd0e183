import json

import numpy as np
import pytest

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.statistics import bound_effect, corpus_statistics, distribution
from fedsim_userdp.settings import TokenSettings

from .sources import MemoryCorpus, StoreOf, memory_corpus


def test_distribution_states_minimum_median_p90_maximum_and_the_share_of_the_top_percent() -> None:
    amounts = np.array([*range(1, 200), 1000])
    found = distribution(amounts)
    assert (found.minimum, found.median, found.maximum, found.total) == (1, 100.5, 1000, 19900 + 1000)
    assert found.p90 == pytest.approx(np.percentile(amounts, 90))
    assert found.top_1_percent_share == pytest.approx((1000 + 199) / 20900)


def test_top_percent_of_few_users_is_one_user() -> None:
    assert distribution(np.array([3, 1])).top_1_percent_share == 0.75


def test_bound_keeps_at_most_k_records_of_each_user_and_drops_the_rest() -> None:
    found = bound_effect(np.array([1, 4, 10]), np.array([10, 40, 100]), 4)
    assert (found.users_capped, found.records_kept, found.records_dropped) == (1, 9, 6)
    assert (found.tokens_kept, found.tokens_dropped) == (90, 60)


def test_a_bound_that_nobody_reaches_drops_nothing() -> None:
    found = bound_effect(np.array([1, 4]), np.array([10, 41]), 4)
    assert (found.users_capped, found.records_dropped, found.tokens_dropped) == (0, 0, 0)


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bound_effect(np.array([1]), np.array([1]), 0)


def test_statistics_of_a_store_are_json_with_drop_counts_and_marked_as_not_private(store_of: StoreOf) -> None:
    store = store_of(memory_corpus(), TokenSettings(window=4, min_words=9, min_tokens=2))
    found = json.loads(json.dumps(corpus_statistics(store, [1, 2]).to_dict()))
    assert found["num_users"] == store.num_users
    assert found["records_per_user"]["total"] == store.stats.num_records
    assert found["tokens_per_user"]["total"] == store.stats.num_tokens
    assert [bound["k"] for bound in found["bounds"]] == [1, 2]
    assert found["dropped"] == store.stats.dropped
    assert found["is_private"] is False


def test_with_declared_owners_the_bound_is_on_what_anybody_owns(store_of: StoreOf) -> None:
    records = [Record("ann", f"mail number {n} here", ("zoe",)) for n in range(5)]
    records += [Record("bob", f"mail number {n} there", ("zoe", "ann")) for n in range(3)]
    store = store_of(MemoryCorpus(records))
    found = corpus_statistics(store, [2, 100])
    assert found.ownership == "declared"
    assert (found.num_users, found.num_owners) == (2, 3)
    assert found.records_per_owner is not None
    assert (found.records_per_owner.maximum, found.records_per_owner.total) == (8, 5 * 2 + 3 * 3)
    tight, loose = found.bounds
    assert (tight.users_capped, tight.records_kept, tight.records_dropped) == (3, 2, 6)
    assert (loose.users_capped, loose.records_dropped, loose.tokens_dropped) == (0, 0, 0)
    assert tight.tokens_kept + tight.tokens_dropped == store.stats.num_tokens


def test_without_declared_owners_owners_are_the_users(store_of: StoreOf) -> None:
    found = corpus_statistics(store_of(memory_corpus()), [1])
    assert (found.ownership, found.records_per_owner, found.num_owners) == ("assigned", None, found.num_users)


def test_statistics_hold_no_user_id_and_no_text(store_of: StoreOf) -> None:
    records = [Record("CANARY-ann", "CANARY text of hers"), Record("CANARY-bob", " "), Record("CANARY-cid", "one two")]
    found = corpus_statistics(store_of(MemoryCorpus(records), TokenSettings(window=8, min_words=3, min_tokens=2)), [1])
    assert found.dropped
    assert "CANARY" not in json.dumps(found.to_dict())

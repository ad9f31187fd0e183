"""Whose a record is: claims that would be false are refused, the others say whom they cover."""

from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ownership import check_ownership
from fedsim_userdp.privacy.statement import PrivacyStatement

RECORDS = acc.RecordLevel(2.0, 0.1, 10, 3)
USERS = acc.PoissonUsers(2.0, 0.1, 10)
OTHERS = [USERS, acc.FixedSize(2.0, 100, 10, 5), acc.Unamplified(2.0, max_participations=5)]


def statement(release: acc.Description, **changes: Any) -> PrivacyStatement:
    settings = {"level": "user", "release": release, "mechanism": "m", "num_users": 100, "rounds": 10, "delta": 1e-3}
    cap = {"records_per_user": 3} if isinstance(release, acc.RecordLevel) else {}
    return PrivacyStatement(**{**settings, **cap, **changes})


@pytest.mark.parametrize("release", OTHERS, ids=lambda release: type(release).__name__)
def test_clipping_users_carries_no_claim_for_all_owners_of_their_records(release: acc.Description) -> None:
    with pytest.raises(ValueError, match="clipping a user's update bounds nobody else's part"):
        check_ownership("declared", release)
    with pytest.raises(ValueError, match="clipping a user's update bounds nobody else's part"):
        statement(release, ownership="declared")
    assert statement(release).ownership == "assigned"


def test_several_runs_together_carry_no_claim_for_all_owners() -> None:
    with pytest.raises(ValueError, match="no claim for all declared owners"):
        statement(acc.Composed((RECORDS, USERS)), ownership="declared")


def test_an_unknown_ownership_is_refused() -> None:
    with pytest.raises(ValueError, match="ownership must be one of 'assigned', 'declared', got 'all'"):
        statement(RECORDS, ownership="all")


def test_a_claim_for_the_assigned_user_says_that_others_are_not_covered() -> None:
    made = statement(RECORDS)
    assert "its recipients, are not covered by the claim" in made.paragraph()
    assert made.adjacency == "add or remove one user with all their records"
    assert any("every record counts for one user" in text for text in made.assumptions)
    assert any("no user has more than 3 records" in text for text in made.assumptions)


def test_a_claim_for_all_owners_says_so_with_its_own_neighbours_and_what_is_public() -> None:
    made = statement(RECORDS, ownership="declared")
    assert "Ownership: all declared owners of a record" in made.paragraph()
    assert str(made.adjacency).startswith("blank all records of one owner")
    assert any("who owns which is public" in text for text in made.assumptions)
    assert any("no user owns more than 3 records" in text for text in made.assumptions)
    assert made.to_json()["ownership"] == "declared"
    assert made.epsilon == statement(RECORDS).epsilon


def test_a_record_level_claim_is_about_records_whoever_owns_them() -> None:
    made = statement(RECORDS, level="record", ownership="declared")
    assert str(made.adjacency).startswith("add or remove one record of the pool")
    assert "Ownership" not in made.paragraph()

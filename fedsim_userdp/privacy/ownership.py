"""Whose a record is: what a claim for users covers, and which releases can carry it."""

from typing import Literal

from fedsim_userdp.privacy.accounting.descriptions import Description, RecordLevel

Ownership = Literal["assigned", "declared"]

COVERED = {
    "assigned": "a record counts for the one user it is filed under (a message: its sender); others who have a part in "
    "it, such as its recipients, are not covered by the claim",
    "declared": "all declared owners of a record (a message: its sender and its recipients)",
}
ASSUMED = {
    "assigned": "every record counts for one user, and names that belong to the same person were merged",
    "declared": "everybody who has a part in a record is among its declared owners, under one name each; which source "
    "records there are (blank ones too) and who owns which is public, and each used one gives one window",
}
BLANK_RECORDS = "blank all records of one owner, with the same records and owners otherwise"


def check_ownership(ownership: Ownership, release: Description | None) -> None:
    """Refuses a claim for all declared owners that clipping does not carry.

    A user's clipped update bounds what that user adds to the sum, not what another owner of the same records adds to
    several users' updates. Where records are clipped one by one, k used records bound every owner alike.

    Args:
        ownership: Whose a record is: "assigned" (of the one user it is filed under) or "declared" (of everybody whom
            the data names as an owner).
        release: What is released, a single run.

    Raises:
        ValueError: ownership is unknown, or it is "declared" and the release is not one of records clipped one by one.
    """
    if ownership not in COVERED:
        raise ValueError(f"ownership must be one of {', '.join(map(repr, COVERED))}, got {ownership!r}")
    if ownership == "declared" and not isinstance(release, RecordLevel):
        raise ValueError(
            "no claim for all declared owners of records can be made here: a person may own records of several users, "
            "and clipping a user's update bounds nobody else's part in it; clip records instead"
        )

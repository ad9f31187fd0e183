"""The ledger never says less than was released."""

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.errors import BudgetExceeded, LedgerError, ReleasedOtherwise
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy import ledger as module
from fedsim_userdp.privacy.ledger import Ledger, seal
from fedsim_userdp.privacy.ledger.entries import FIRST_HASH, Release, decode

DELTA = 1e-5
ROUND = acc.PoissonUsers(1.0, 0.05, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def opened(path: Path, **changed: Any) -> Ledger:
    return Ledger.open(path, **{"delta": DELTA, "run": "c0", **changed})


def filled(path: Path, num_rounds: int, release: Release = ROUND, **changed: object) -> bytes:
    with opened(path, **changed) as ledger:
        for number in range(num_rounds):
            ledger.record(number, release)
    return path.read_bytes()


def test_epsilon_is_that_of_the_rounds_recorded(path: Path) -> None:
    with opened(path) as ledger:
        assert ledger.epsilon() == 0.0
        for number in range(5):
            ledger.record(number, ROUND)
        assert ledger.rounds == (0, 1, 2, 3, 4)
        assert ledger.epsilon() == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 5), DELTA)
        assert ledger.epsilon(method="rdp") == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 5), DELTA, "rdp")
        assert ledger.epsilon(1e-3) < ledger.epsilon()


def test_resumed_ledger_goes_on_where_it_was(path: Path) -> None:
    filled(path, 3)
    with opened(path) as ledger:
        assert ledger.rounds == (0, 1, 2)
        ledger.record(3, ROUND)
        assert ledger.epsilon() == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 4), DELTA)


def test_line_is_on_the_disk_before_record_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with opened(path) as ledger:
        monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.append(path.stat().st_size))
        ledger.record(0, ROUND)
        assert synced == [path.stat().st_size]
        assert b'"round":0' in path.read_bytes()


def test_run_refuses_the_round_that_would_exceed_the_budget(path: Path) -> None:
    budget = acc.epsilon(acc.PoissonUsers(1.0, 0.05, 10), DELTA)
    with opened(path, budget_epsilon=budget) as ledger:
        for number in range(10):
            ledger.record(number, ROUND)
        before = path.read_bytes()
        with pytest.raises(BudgetExceeded, match=r"round 10 would bring epsilon to .* above the budget"):
            ledger.record(10, ROUND)
        assert path.read_bytes() == before
        assert ledger.epsilon() == budget
    with opened(path, budget_epsilon=budget) as ledger, pytest.raises(BudgetExceeded):
        ledger.record(10, ROUND)


def test_epsilon_of_a_run_under_way_is_that_of_its_rounds_and_not_its_budget(path: Path) -> None:
    with opened(path, budget_epsilon=4.0) as ledger:
        for number in range(3):
            ledger.record(number, ROUND)
        assert ledger.epsilon() == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 3), DELTA) < 4.0


def test_calibrated_run_fits_its_budget_to_the_last_round(path: Path) -> None:
    run = acc.calibrate(acc.PoissonUsers(1.0, 0.1, 30), epsilon=2.0, delta=DELTA)
    with opened(path, budget_epsilon=2.0) as ledger:
        for number in range(30):
            ledger.record(number, run.first(1))
        assert 1.98 <= ledger.epsilon() <= 2.0


def test_repeated_identical_round_is_counted_once(path: Path) -> None:
    filled(path, 5)
    with opened(path) as ledger:
        for number in (3, 4, 5):
            ledger.record(number, ROUND)
        assert ledger.rounds == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("number", "release", "config"),
    [(2, acc.PoissonUsers(1.1, 0.05, 1), "c0"), (2, ROUND, "c1"), (0, acc.RecordLevel(1.0, 0.05, 1, 2), "c0")],
)
def test_repeated_round_that_differs_is_refused(path: Path, number: int, release: Release, config: str) -> None:
    before = filled(path, 3)
    with opened(path, run=config) as ledger, pytest.raises(LedgerError, match="recorded before"):
        ledger.record(number, release)
    assert path.read_bytes() == before


def test_repeated_round_with_fresh_noise_is_counted_again(path: Path) -> None:
    filled(path, 3, noise_source="os")
    with opened(path, noise_source="os") as ledger:
        ledger.record(2, ROUND)
        assert ledger.rounds == (0, 1, 2, 2)
        assert ledger.epsilon() == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 4), DELTA)


def test_seeded_round_cannot_be_repeated_with_fresh_noise_or_the_other_way_round(path: Path) -> None:
    filled(path, 2)
    with opened(path, noise_source="os") as ledger, pytest.raises(LedgerError, match="recorded before"):
        ledger.record(1, ROUND)


def test_round_before_the_last_one_is_refused(path: Path) -> None:
    with opened(path) as ledger:
        ledger.record(5, ROUND)
        with pytest.raises(LedgerError, match="comes after round 5"):
            ledger.record(4, ROUND)


@pytest.mark.parametrize("source", ["seeded", "os"])
def test_killed_at_any_byte_it_never_reports_less_than_was_released(path: Path, source: str) -> None:
    """A release follows its line, so the releases made are at most the whole lines; a torn one counts on top."""
    unsampled = acc.PoissonUsers(4.0, 1.0, 1)
    data = filled(path, 3, unsampled, noise_source=source)
    exact = [acc.epsilon(acc.PoissonUsers(4.0, 1.0, n), DELTA) if n else 0.0 for n in range(5)]
    ends = [at for at, byte in enumerate(data) if byte == ord("\n")]
    for size in sorted({*range(0, len(data), 7), *(end + shift for end in ends for shift in (-1, 0, 1))}):
        whole = data[:size].count(b"\n") + (size < len(data) and data[size : size + 1] == b"\n" and size > 0)
        torn = size > 0 and data[size - 1 : size] != b"\n" and data[size : size + 1] != b"\n"
        path.write_bytes(data[:size])
        with opened(path, noise_source=source) as ledger:
            assert len(ledger.rounds) == whole
            assert ledger.num_torn == torn or (torn and not whole)  # where no line tells how long one is, perhaps more
            assert ledger.epsilon() == (math.inf if torn and not whole else exact[whole + torn])
            counted = ledger.num_torn if source == "os" else 0  # a seeded one is completed: it is the same release
            ledger.record(whole, unsampled)
            assert ledger.epsilon() == exact[whole + counted + 1]
        with opened(path, noise_source=source) as ledger:
            assert (len(ledger.rounds), ledger.num_torn) == (whole + 1, counted)


def test_killed_while_marking_a_torn_line_it_still_opens(path: Path) -> None:
    data = filled(path, 2, noise_source="os")
    torn = data[: len(data) - 20]
    path.write_bytes(torn)
    opened(path, noise_source="os").close()
    marked = path.read_bytes()
    for size in range(len(torn), len(marked)):
        path.write_bytes(marked[:size])
        with opened(path, noise_source="os") as ledger:
            assert ledger.rounds == (0,)
            assert ledger.num_torn >= 1
            ledger.record(1, ROUND)
        with opened(path, noise_source="os") as ledger:
            assert ledger.rounds == (0, 1)


@pytest.mark.parametrize("byte", [b" ", b"x", b"\0", b"\r"])
def test_a_damaged_newline_makes_two_releases_at_least_two(path: Path, byte: bytes) -> None:
    data = filled(path, 6, noise_source="os")
    at = data[:-1].rindex(b"\n")
    path.write_bytes(data[:at] + byte + data[at + 1 :])
    with opened(path, noise_source="os") as ledger:
        assert ledger.rounds == (0, 1, 2, 3)
        assert ledger.num_torn >= 2
        assert ledger.epsilon() >= acc.epsilon(acc.PoissonUsers(1.0, 0.05, 6), DELTA)
    with opened(path, noise_source="os") as ledger:
        assert ledger.num_releases >= 6


def test_no_damage_of_a_single_byte_makes_a_ledger_report_less(path: Path) -> None:
    data = filled(path, 4, noise_source="os")
    exact = acc.epsilon(acc.PoissonUsers(1.0, 0.05, 4), DELTA)
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with suppress(LedgerError), opened(path, noise_source="os") as ledger:
            assert ledger.epsilon() >= exact, f"byte {at}"


def test_a_sealed_ledger_names_the_adapter_and_takes_no_more_releases(path: Path) -> None:
    filled(path, 2)
    seal(path, "ab" * 32)
    sealed = path.read_bytes()
    seal(path, "ab" * 32)
    assert path.read_bytes() == sealed
    assert decode(sealed).sealed == "ab" * 32
    with pytest.raises(LedgerError, match="sealed with another adapter"):
        seal(path, "cd" * 32)
    with opened(path) as ledger:
        assert ledger.rounds == (0, 1)
        with pytest.raises(LedgerError, match="is sealed"):
            ledger.record(2, ROUND)
    with path.open("ab") as file:
        file.write(sealed.splitlines(keepends=True)[0])
    with pytest.raises(LedgerError):
        opened(path)


def test_the_same_round_with_other_users_answers_is_another_release_and_must_not_be_made(path: Path) -> None:
    with opened(path) as ledger:
        ledger.record(1, ROUND, "everybody")
        ledger.record(1, ROUND, "everybody")
        with pytest.raises(ReleasedOtherwise, match="round 1 was released before, with other users' answers"):
            ledger.record(1, ROUND, "all but one")
        assert ledger.rounds == (1,)


def test_torn_line_counts_as_one_more_of_each_kind(path: Path) -> None:
    with opened(path) as ledger:
        ledger.record(0, ROUND)
        ledger.record(1, acc.PoissonUsers(2.0, 0.05, 1))
    with path.open("ab") as file:
        file.write(b'{"round": 2, "rel')
    with opened(path) as ledger:
        both = acc.Composed((acc.PoissonUsers(1.0, 0.05, 2), acc.PoissonUsers(2.0, 0.05, 2)))
        assert ledger.epsilon() == acc.epsilon(both, DELTA)


GROUPS = acc.PoissonGroups(1.5, (((0.3, 1.0, 2), (0.05, 1.0, 2)), ((0.05, 1.5, 3), (0.3, 1.0, 1))))


def rounds_of(run: acc.PoissonGroups) -> list[acc.PoissonGroups]:
    return [run.between(number, number) for number in range(1, run.num_releases + 1)]


def test_a_group_is_the_same_users_in_all_rounds_of_a_run(path: Path) -> None:
    budget = acc.epsilon(GROUPS, DELTA) * (1.0 + 1e-9)
    with opened(path, budget_epsilon=budget) as ledger:
        for number, release in enumerate(rounds_of(GROUPS)):
            ledger.record(number, release)
            assert ledger.epsilon() == pytest.approx(acc.epsilon(GROUPS.first(number + 1), DELTA), rel=1e-9)
        with pytest.raises(BudgetExceeded):
            ledger.record(4, GROUPS.between(1, 1))
    with opened(path) as ledger:
        assert ledger.epsilon() == pytest.approx(acc.epsilon(GROUPS, DELTA), rel=1e-9)
        assert ledger.epsilon() < acc.epsilon(acc.Composed(tuple(rounds_of(GROUPS))), DELTA)


def test_groups_with_adapted_clip_norms_are_counted_the_same(path: Path) -> None:
    run = acc.PoissonGroups(1.5, (((0.1, 1.0, 2), (0.2, 1.0, 2)), ((0.2, 1.0, 1), (0.3, 1.0, 3))))
    with opened(path) as ledger:
        for number, release in enumerate(rounds_of(run)):
            ledger.record(number, acc.AdaptiveClipping(release, 5.0))
    with opened(path) as ledger:
        assert ledger.epsilon() == pytest.approx(acc.epsilon(run, DELTA), rel=1e-9)


def test_a_torn_line_counts_as_a_round_with_the_most_of_each_group(path: Path) -> None:
    with opened(path) as ledger:
        for number, release in enumerate(rounds_of(GROUPS)):
            ledger.record(number, release)
    with path.open("ab") as file:
        file.write(b'{"round": 5, "rel')
    most = tuple((*group, (*extra, 1)) for group, extra in zip(GROUPS.groups, ((0.3, 1.0), (0.3, 1.5)), strict=True))
    with opened(path) as ledger:
        assert ledger.epsilon() == pytest.approx(acc.epsilon(acc.PoissonGroups(1.5, most), DELTA), rel=1e-9)


def test_rounds_of_groups_with_more_noise_weigh_less(path: Path) -> None:
    noisier = GROUPS.with_noise_multiplier(3.0)
    with opened(path) as ledger:
        ledger.record(0, noisier.between(1, 1))
        ledger.record(1, GROUPS.between(4, 4))
        each = [((0.3, 0.5, 1), (0.05, 1.0, 1)), ((0.05, 0.75, 1), (0.3, 1.0, 1))]
        assert ledger.epsilon() == pytest.approx(acc.epsilon(acc.PoissonGroups(1.5, tuple(each)), DELTA), rel=1e-6)


def test_another_number_of_groups_in_one_run_is_refused(path: Path) -> None:
    with opened(path) as ledger:
        ledger.record(0, GROUPS.first(1))
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"must have the same number of groups, got \[1, 2\]"):
            ledger.record(1, acc.PoissonGroups(1.5, (((0.1, 1.0, 1),),)))
    assert path.read_bytes() == before


def test_groups_of_another_run_may_be_other_users(path: Path) -> None:
    with opened(path) as ledger:
        ledger.record(0, GROUPS.first(1))
    with opened(path, run="c1") as ledger:
        ledger.record(1, GROUPS.between(4, 4))
        assert ledger.epsilon() == acc.epsilon(acc.PoissonUsers(1.5, 0.3, 2), DELTA)
        joined = tuple(
            one + other for one, other in zip(GROUPS.first(1).groups, GROUPS.between(4, 4).groups, strict=True)
        )
        assert ledger.epsilon() > acc.epsilon(acc.PoissonGroups(1.5, joined), DELTA)


def test_rounds_of_groups_that_are_expected_need_no_accounting_of_their_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = acc.epsilon(GROUPS, DELTA) * (1.0 + 1e-9)
    with opened(path, budget_epsilon=budget) as ledger:
        ledger.record(0, GROUPS.between(1, 1))
        ledger.expect(GROUPS.between(2, 4))
        with monkeypatch.context() as patch:
            patch.setattr(module.accountants, "curve", lambda *arguments: pytest.fail("accounted again"))
            for number in (2, 3, 4):
                ledger.record(number - 1, GROUPS.between(number, number))
        with pytest.raises(BudgetExceeded):
            ledger.record(4, GROUPS.between(4, 4))


def test_rounds_of_another_runs_groups_are_none_of_the_expected_ones(path: Path) -> None:
    """Groups that are other users in each run cost more than one run of the same rounds."""
    with opened(path) as ledger:
        ledger.record(0, GROUPS.first(1))
    joined = tuple(one + other for one, other in zip(GROUPS.first(1).groups, GROUPS.between(4, 4).groups, strict=True))
    budget = acc.epsilon(acc.PoissonGroups(1.5, joined), DELTA) * 1.01
    with opened(path, run="c1", budget_epsilon=budget) as ledger:
        ledger.expect(GROUPS.between(4, 4))
        with pytest.raises(BudgetExceeded):
            ledger.record(1, GROUPS.between(4, 4))


@pytest.mark.parametrize("line", [0, 1, 2])
def test_changed_line_is_noticed(path: Path, line: int) -> None:
    lines = filled(path, 3).splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"noise_multiplier":1.0', b'"noise_multiplier":9.0')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=rf"line {line + 1} of the ledger was changed"):
        opened(path)


@pytest.mark.parametrize("change", ["remove", "swap", "repeat", "torn in the middle"])
def test_missing_or_moved_line_is_noticed(path: Path, change: str) -> None:
    a, b, c = filled(path, 3).splitlines(keepends=True)
    path.write_bytes(
        {"remove": a + c, "swap": b + a + c, "repeat": a + a + b + c, "torn in the middle": a + b[:9] + b"\n" + b + c}[
            change
        ]
    )
    with pytest.raises(LedgerError):
        opened(path)


def test_lines_cut_off_the_end_are_noticed_by_the_head_of_a_checkpoint(path: Path) -> None:
    with opened(path, must_contain=FIRST_HASH) as ledger:
        ledger.record(0, ROUND)
        ledger.record(1, ROUND)
        head = ledger.head
    opened(path, must_contain=head).close()
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LedgerError, match="cut off"):
        opened(path, must_contain=head)


def test_ledger_has_one_writer_at_a_time(path: Path) -> None:
    with opened(path), pytest.raises(LedgerError, match="one writer at a time"):
        opened(path)
    opened(path).close()


def test_closed_ledger_takes_no_release(path: Path) -> None:
    ledger = opened(path)
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.record(0, ROUND)


def test_failed_write_closes_the_ledger_and_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, 1)
    ledger = opened(path)
    real = os.write
    with monkeypatch.context() as patch:

        def full_disk(descriptor: int, data: bytes) -> int:
            real(descriptor, data[:10])
            raise OSError(28, "No space left on device")

        patch.setattr(module.os, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            ledger.record(1, ROUND)
    with pytest.raises(LedgerError, match="closed"):
        ledger.record(1, ROUND)
    with opened(path) as again:
        assert (again.rounds, again.num_torn) == ((0,), 1)


def test_releases_of_different_neighbouring_relations_are_refused_before_the_second(path: Path) -> None:
    before = filled(path, 1)
    with opened(path) as ledger, pytest.raises(ValueError, match="neighbouring relation"):
        ledger.record(1, acc.FixedSize(1.0, 100, 10, 1))
    assert path.read_bytes() == before


def test_participations_are_capped_as_declared_and_the_cap_cannot_change(path: Path) -> None:
    with opened(path) as ledger:
        for number in range(10):
            ledger.record(number, acc.NoAmplification(4.0, max_participations=3))
        assert ledger.epsilon() == acc.epsilon(acc.NoAmplification(4.0, 3), DELTA)
        ledger.record(10, acc.NoAmplification(2.0, max_participations=3))
        mu = math.sqrt(0.5**2 + 2 * 0.25**2)
        assert ledger.epsilon() == pytest.approx(acc.epsilon(acc.NoAmplification(1.0 / mu, 1), DELTA))
        with pytest.raises(ValueError, match="one max_participations"):
            ledger.record(11, acc.NoAmplification(2.0, max_participations=4))


def test_the_cap_holds_for_each_run_of_a_ledger(path: Path) -> None:
    one = acc.NoAmplification(2.0, max_participations=1)
    for run, rounds in (("first", range(5)), ("second", range(5, 10))):
        with opened(path, run=run) as ledger:
            for number in rounds:
                ledger.record(number, one)
            spent = ledger.epsilon()
    assert spent == acc.epsilon(acc.Composed((one, one)), DELTA)


def test_a_schedule_that_marks_of_cohorts_chain_has_one_cap_over_all_runs(path: Path) -> None:
    for run, rounds in (("first", range(2)), ("under changed settings", range(2, 6))):
        with opened(path, run=run) as ledger:
            for number in rounds:
                ledger.record(number, acc.NoAmplification(4.0, max_participations=3), cohorts=f"mark {number}")
                assert ledger.epsilon() == acc.epsilon(acc.NoAmplification(4.0, min(number + 1, 3)), DELTA)


def test_a_line_that_may_stand_for_a_whole_run_counts_as_one(path: Path) -> None:
    whole = acc.NoAmplification(4.0, max_participations=16)
    releases: list[Release] = [whole, acc.AdaptiveClipping(whole, 60.0)]
    for number, release in enumerate(releases):
        with opened(path.with_name(f"{number}.jsonl")) as ledger:
            ledger.record(1, release)
            assert ledger.epsilon() == acc.epsilon(release, DELTA)


@pytest.mark.parametrize(
    ("release", "whole", "method"),
    [
        (acc.RecordLevel(3.0, 0.05, 1, 4), acc.RecordLevel(3.0, 0.05, 6, 4), "tight"),
        (acc.RecordLevel(3.0, 0.05, 2, 4), acc.RecordLevel(3.0, 0.05, 12, 4), "group"),
        (acc.RecordLevel(3.0, 0.05, 1, 4), acc.RecordLevel(3.0, 0.05, 6, 4), "record"),
        (acc.FixedSize(2.0, 1000, 50, 1), acc.FixedSize(2.0, 1000, 50, 6), "rdp"),
        (acc.PoissonGroups(1.0, (((0.05, 1.0, 1),),)), acc.PoissonUsers(1.0, 0.05, 6), "pld"),
        (acc.AdaptiveClipping(ROUND, 3.0), acc.PoissonUsers(1.0, 0.05, 6), "pld"),
        (acc.PaidSignals(ROUND, 0.2), acc.PoissonUsers(1.0, 0.05, 6), "pld"),
        (acc.AdaptiveClipping(acc.PaidSignals(ROUND, 0.2), 3.0), acc.PoissonUsers(1.0, 0.05, 6), "pld"),
    ],
    ids=str,
)
def test_every_kind_of_release_is_accounted_for(
    path: Path, release: Release, whole: acc.Description, method: str
) -> None:
    filled(path, 6, release)
    with opened(path, method=method) as ledger:
        assert ledger.epsilon() == pytest.approx(acc.epsilon(whole, DELTA, method), rel=1e-9)


def test_budget_of_a_record_level_run_is_record_level(path: Path) -> None:
    run = acc.calibrate(acc.RecordLevel(1.0, 0.05, 20, 8), epsilon=2.0, delta=DELTA, method="record")
    with opened(path, budget_epsilon=2.0, method="record") as ledger:
        for number in range(20):
            ledger.record(number, run.first(1))
        assert ledger.epsilon() <= 2.0 < ledger.epsilon(method="tight")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"delta": 0.0}, "delta must be in"),
        ({"budget_epsilon": -1.0}, "budget_epsilon must be in"),
        ({"run": ""}, "run must be"),
        ({"noise_source": "numpy"}, "noise_source must be"),
    ],
)
def test_bad_arguments_are_named(path: Path, changed: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        opened(path, **changed)
    with opened(path) as ledger:
        with pytest.raises(ValueError, match="round must be"):
            ledger.record(-1, ROUND)
        with pytest.raises(ValueError, match="release must be"):
            ledger.record(0, "noise")  # type: ignore[arg-type]


def test_epsilon_of_every_round_of_a_run_costs_under_150_ms_each(path: Path) -> None:
    with opened(path, budget_epsilon=50.0) as ledger:
        start = time.perf_counter()
        for number in range(60):
            ledger.record(number, acc.PoissonUsers(0.7, 0.08, 1))
            ledger.epsilon()
        assert time.perf_counter() - start < 60 * 0.15  # 15 ms on a machine that does nothing else


CHILD = """
import sys
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ledger import Ledger, seal
with Ledger.open(sys.argv[1], delta=1e-5, run="c0") as ledger:
    first = len(ledger.rounds)
    for number in range(first, 100_000):
        ledger.record(number, acc.PoissonUsers(1.0, 0.05, 1))
        print(number, flush=True)
"""


def test_killed_process_leaves_every_release_it_made_in_the_ledger(path: Path) -> None:
    released = 0
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(20):
            released = int(child.stdout.readline()) + 1
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        released = int(rest[-1]) + 1 if rest else released
        with opened(path) as ledger:
            assert len(ledger.rounds) >= released
            assert ledger.epsilon() >= acc.epsilon(acc.PoissonUsers(1.0, 0.05, released), DELTA)

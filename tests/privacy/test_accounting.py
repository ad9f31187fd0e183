"""Reference values, and who may claim what."""

import dataclasses
import itertools
import math
import statistics
import subprocess
import sys
import time

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy import pld
from fedsim_userdp.privacy.accounting import curves
from fedsim_userdp.privacy.accounting.descriptions import Adjacency, Run

from .conftest import REFERENCE

DELTA = 1e-5


@pytest.mark.parametrize("method", ["pld", "rdp"])
@pytest.mark.parametrize("row", REFERENCE["user_wise_epsilon"], ids=lambda row: f"q{row['sampling_prob']}")
def test_user_wise_epsilon_agrees_with_the_reference(row: dict, method: str) -> None:
    run = acc.PoissonUsers(row["noise_multiplier"], row["sampling_prob"], row["rounds"])
    assert acc.epsilon(run, row["delta"], method) == pytest.approx(row[method], rel=1e-3)


@pytest.mark.parametrize("method", ["pld", "rdp"])
@pytest.mark.parametrize("row", REFERENCE["user_wise_noise_multiplier"], ids=lambda row: f"eps{row['epsilon']}")
def test_user_wise_calibration_agrees_with_the_reference(row: dict, method: str) -> None:
    run = acc.PoissonUsers(1.0, row["sampling_prob"], row["rounds"])
    found = acc.calibrate(run, epsilon=row["epsilon"], delta=row["delta"], method=method)
    assert found.noise_multiplier == pytest.approx(row[method], rel=0.01)
    assert 0.99 * row["epsilon"] <= acc.epsilon(found, row["delta"], method) <= row["epsilon"]


@pytest.mark.parametrize("method", ["group", "tight"])
@pytest.mark.parametrize(
    "row", REFERENCE["group_privacy_noise_multiplier"], ids=lambda row: f"k{row['records_per_user']}"
)
def test_record_level_calibration_agrees_with_the_reference(row: dict, method: str) -> None:
    run = acc.RecordLevel(1.0, row["sampling_prob"], row["steps"], row["records_per_user"])
    found = acc.calibrate(run, epsilon=row["epsilon"], delta=row["delta"], method=method)
    assert found.noise_multiplier == pytest.approx(row["group_pld" if method == "group" else method], rel=0.01)
    assert 0.99 * row["epsilon"] <= acc.epsilon(found, row["delta"], method) <= row["epsilon"]


def test_fixed_size_agrees_with_the_reference_and_not_with_sensitivity_one() -> None:
    row = REFERENCE["fixed_size_replace_one"][0]
    run = acc.FixedSize(row["noise_multiplier"], row["num_users"], row["cohort"], row["rounds"])
    found = acc.epsilon(run, row["delta"])
    assert found == pytest.approx(row["epsilon"], rel=1e-3)
    assert found > 2.0 * 3.6146


def test_one_step_tight_delta_agrees_with_the_reference() -> None:
    row = REFERENCE["tight_one_step_delta"][0]
    run = acc.RecordLevel(row["noise_multiplier"], row["sampling_prob"], 1, row["records_per_user"])
    assert acc.delta(run, row["epsilon"], "tight") == pytest.approx(row["delta"], abs=row["tolerance"])


def test_search_cost_agrees_with_the_reference() -> None:
    row = REFERENCE["selection_search_cost"][0]
    run = acc.PoissonUsers(row["noise_multiplier"], row["sampling_prob"], row["rounds"])
    assert acc.epsilon(run, row["delta"], "rdp") == pytest.approx(row["single_run_rdp"], rel=1e-3)
    searched = acc.epsilon(acc.HyperparameterSearch(run, mean_runs=10.0), row["delta"])
    assert searched == pytest.approx(row["best_of_geometric_mean_10_rdp"], rel=1e-3)


def test_adaptive_clipping_split_agrees_with_the_reference() -> None:
    row = REFERENCE["adaptive_clipping_split"][0]
    split = acc.AdaptiveClipping(acc.PoissonUsers(row["noise_multiplier"], 0.1, 10), row["count_stddev"])
    assert split.update_noise_multiplier == pytest.approx(row["update_noise_multiplier"], rel=1e-6)


def test_update_and_count_of_adaptive_clipping_cost_what_the_run_says() -> None:
    split = acc.AdaptiveClipping(acc.PoissonUsers(1.0, 1.0, 1), count_stddev=0.8)
    update = acc.epsilon(acc.PoissonUsers(split.update_noise_multiplier, 1.0, 1), DELTA)
    both = acc.Composed((acc.PoissonUsers(split.update_noise_multiplier, 1.0, 1), acc.PoissonUsers(2.0 * 0.8, 1.0, 1)))
    assert update < acc.epsilon(split, DELTA)
    assert acc.epsilon(both, DELTA) == pytest.approx(acc.epsilon(split, DELTA), rel=1e-9)


def test_update_sums_and_counts_of_paid_signals_cost_what_the_run_says() -> None:
    split = acc.PaidSignals(acc.PoissonUsers(1.0, 1.0, 1), share=0.3)
    update, signal = (
        acc.PoissonUsers(noise, 1.0, 1) for noise in (split.update_noise_multiplier, split.signal_noise_multiplier)
    )
    all_of_them = acc.Composed((update, signal, signal))
    assert acc.epsilon(all_of_them, DELTA) == pytest.approx(acc.epsilon(split, DELTA), rel=1e-9)
    assert acc.epsilon(acc.Composed((update, signal)), DELTA) < 0.97 * acc.epsilon(split, DELTA)
    with_count = acc.AdaptiveClipping(split, count_stddev=0.9)
    update = acc.PoissonUsers(with_count.update_noise_multiplier, 1.0, 1)
    all_of_them = acc.Composed((update, signal, signal, acc.PoissonUsers(2 * 0.9, 1.0, 1)))
    assert acc.epsilon(all_of_them, DELTA) == pytest.approx(acc.epsilon(with_count, DELTA), rel=1e-9)


def test_calibrated_paid_signals_keep_their_share() -> None:
    found = acc.calibrate(acc.PaidSignals(acc.PoissonUsers(1.0, 0.1, 100), 0.2), epsilon=3.0, delta=DELTA)
    assert found.share == 0.2
    assert found.run == acc.calibrate(acc.PoissonUsers(1.0, 0.1, 100), epsilon=3.0, delta=DELTA)


def test_calibrated_adaptive_clipping_keeps_its_count_noise() -> None:
    found = acc.calibrate(acc.AdaptiveClipping(acc.PoissonUsers(1.0, 0.1, 100), 10.0), epsilon=3.0, delta=DELTA)
    assert found.count_stddev == 10.0
    assert 2.97 <= acc.epsilon(found, DELTA) <= 3.0


def test_calibration_says_when_the_counts_have_too_little_noise() -> None:
    with pytest.raises(ValueError, match="count_stddev must be in"):
        acc.calibrate(acc.AdaptiveClipping(acc.PoissonUsers(0.1, 0.1, 100), 0.1), epsilon=1.0, delta=DELTA)


@pytest.mark.parametrize(
    ("description", "method", "reason"),
    [
        (acc.FixedSize(2.0, 1000, 50, 200), "pld", "not known here"),
        (acc.RecordLevel(2.0, 0.05, 200, 5), "pld", "which unit is meant"),
        (acc.RecordLevel(2.0, 0.05, 200, 5), "rdp", "no RDP"),
        (acc.PoissonUsers(2.0, 0.05, 200), "record", "only record-level runs"),
        (acc.PoissonUsers(2.0, 0.05, 200), "gdp", "no such accountant"),
        (acc.HyperparameterSearch(acc.RecordLevel(2.0, 0.05, 200, 5), 10.0), "tight", "Poisson sampling"),
        (acc.HyperparameterSearch(acc.PoissonUsers(2.0, 0.05, 200), 10.0), "pld", "not known"),
    ],
    ids=str,
)
def test_pairs_that_do_not_fit_are_refused_with_the_reason(
    description: acc.Description, method: str, reason: str
) -> None:
    with pytest.raises(acc.AccountingError, match=reason):
        acc.epsilon(description, DELTA, method)


def test_shuffled_or_cyclic_selection_cannot_claim_the_poisson_epsilon() -> None:
    poisson = acc.epsilon(acc.PoissonUsers(2.0, 0.05, 200), DELTA)
    cyclic = acc.epsilon(acc.NoAmplification(2.0, max_participations=10), DELTA)
    assert cyclic > 2.0 * poisson
    with pytest.raises(ValueError, match="adding, removing or exchanging a user changes who else takes part"):
        acc.NoAmplification(2.0, 10, Adjacency.ADD_OR_REMOVE_USER)


def test_without_amplification_the_cost_is_the_closed_form_of_the_declared_participations() -> None:
    run = acc.NoAmplification(4.0, max_participations=9)
    assert acc.epsilon(run, DELTA) == pytest.approx(acc.epsilon(acc.PoissonUsers(4.0 / 3.0, 1.0, 1), DELTA), rel=1e-9)
    assert acc.epsilon(run, DELTA) <= acc.epsilon(run, DELTA, "rdp")


def test_replacing_a_user_costs_twice_the_sensitivity_of_emptying_them() -> None:
    replaced = acc.NoAmplification(4.0, 9, Adjacency.REPLACE_RECORDS)
    assert acc.epsilon(replaced, DELTA) == pytest.approx(acc.epsilon(acc.NoAmplification(2.0, 9), DELTA), rel=1e-12)


def test_fixed_cohort_of_everybody_is_the_gaussian_of_twice_the_sensitivity() -> None:
    whole = acc.epsilon(acc.FixedSize(8.0, 50, 50, 10), DELTA)
    assert whole == pytest.approx(acc.epsilon(acc.PoissonUsers(4.0, 1.0, 10), DELTA, "rdp"), rel=1e-6)


def test_fixed_cohorts_never_cost_more_than_no_sampling() -> None:
    """The bound of sampling without replacement alone gives 38.9 for cohorts of 19 out of 20, and 16.0 for all 20."""
    costs = [acc.epsilon(acc.FixedSize(4.0, 20, cohort, 50), 0.0067) for cohort in (5, 10, 15, 19, 20)]
    assert costs == sorted(costs)
    assert costs[-2] == pytest.approx(acc.epsilon(acc.NoAmplification(2.0, 50), 0.0067, "rdp"), rel=1e-6)


def test_runs_of_different_neighbouring_relations_have_no_common_epsilon() -> None:
    with pytest.raises(ValueError, match="share one neighbouring relation"):
        acc.Composed((acc.PoissonUsers(1.0, 0.1, 10), acc.FixedSize(1.0, 100, 10, 10)))


def test_composition_of_equal_runs_is_the_longer_run() -> None:
    parts = acc.Composed((acc.PoissonUsers(1.0, 0.05, 50), acc.PoissonUsers(1.0, 0.05, 150)))
    for method in ("pld", "rdp"):
        assert acc.epsilon(parts, DELTA, method) == acc.epsilon(acc.PoissonUsers(1.0, 0.05, 200), DELTA, method)


def test_composition_of_unequal_runs_lies_between_those_of_its_parts() -> None:
    parts = acc.Composed((acc.PoissonUsers(1.0, 0.05, 100), acc.PoissonUsers(2.0, 0.05, 100)))
    least, most = (acc.epsilon(acc.PoissonUsers(sigma, 0.05, 200), DELTA) for sigma in (2.0, 1.0))
    assert least < acc.epsilon(parts, DELTA) < most
    assert acc.epsilon(parts, DELTA) <= acc.epsilon(parts, DELTA, "rdp")


REPLACED = acc.NoAmplification(2.0, 10, acc.Adjacency.REPLACE_RECORDS)


@pytest.mark.parametrize("method", [None, "pld", "rdp", "tight"])
@pytest.mark.parametrize(
    "parts",
    [
        (REPLACED, acc.FixedSize(2.0, 1000, 50, 100)),
        (REPLACED, acc.NoAmplification(4.0, 5, acc.Adjacency.REPLACE_RECORDS)),
        (acc.NoAmplification(2.0, 10), acc.AdaptiveClipping(acc.NoAmplification(3.0, 4), 9.0)),
        (acc.PoissonUsers(2.0, 0.05, 100), acc.RecordLevel(4.0, 0.05, 100, 3)),
    ],
    ids=lambda parts: " and ".join(type(part).__name__ for part in parts),
)
def test_composition_in_either_order_costs_the_same_and_more_than_its_parts(
    parts: tuple[Run | acc.AdaptiveClipping, ...], method: str | None
) -> None:
    one, other = acc.Composed(parts), acc.Composed(parts[::-1])
    assert set(acc.methods(one)) == set(acc.methods(other))
    if method is not None and method not in acc.methods(one):
        with pytest.raises(acc.AccountingError):
            acc.epsilon(one, 1e-5, method)
        return
    together = acc.epsilon(one, 1e-5, method)
    assert together == pytest.approx(acc.epsilon(other, 1e-5, method), rel=1e-3)
    for part in parts:
        alone = acc.Composed((part,))
        used = method if method in acc.methods(alone) else None
        assert together > acc.epsilon(alone, 1e-5, used)


def test_mixed_record_and_user_sampling_composes_at_user_level() -> None:
    parts = acc.Composed((acc.PoissonUsers(2.0, 0.05, 100), acc.RecordLevel(4.0, 0.05, 100, 3)))
    assert acc.methods(parts) == ("tight",)
    assert acc.epsilon(parts, DELTA) > acc.epsilon(acc.RecordLevel(4.0, 0.05, 100, 3), DELTA, "tight")


@pytest.mark.parametrize("records", [2, 5, 10, 20])
@pytest.mark.parametrize(("noise_multiplier", "sampling_prob", "steps"), [(4.0, 0.05, 200), (2.0, 0.01, 1000)])
def test_tight_is_never_above_the_black_box_conversion(
    records: int, noise_multiplier: float, sampling_prob: float, steps: int
) -> None:
    run = acc.RecordLevel(noise_multiplier, sampling_prob, steps, records)
    assert acc.epsilon(run, DELTA, "tight") <= acc.epsilon(run, DELTA, "group")


@pytest.mark.slow
@pytest.mark.parametrize(("sampling_prob", "steps"), [(0.05, 200), (0.01, 1000)])
def test_table_of_tight_calibrations_takes_at_most_three_seconds_a_cell(sampling_prob: float, steps: int) -> None:
    """Each cell is met from below, never worse than the black box, and the repeats come from the disk."""
    times, repeats = [], []
    for records, epsilon in itertools.product([2, 5, 10, 20], [1.0, 3.0, 8.0]):
        run = acc.RecordLevel(1.0, sampling_prob, steps, records)
        start = time.perf_counter()
        tight = acc.calibrate(run, epsilon=epsilon, delta=DELTA, method="tight")
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        assert acc.calibrate(run, epsilon=epsilon, delta=DELTA, method="tight") == tight
        repeats.append(time.perf_counter() - start)
        assert 0.99 * epsilon <= acc.epsilon(tight, DELTA, "tight") <= epsilon
        group = acc.calibrate(run, epsilon=epsilon, delta=DELTA, method="group")
        assert 0.7 * group.noise_multiplier <= tight.noise_multiplier <= 1.002 * group.noise_multiplier
    assert statistics.median(times) < 3.0
    assert statistics.median(repeats) < 0.05


@pytest.mark.parametrize("sampling_prob", [1e-4, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("noise_multiplier", [0.7, 8.0, 100.0])
def test_tight_answers_for_64_records_over_10_000_steps(noise_multiplier: float, sampling_prob: float) -> None:
    run = acc.RecordLevel(noise_multiplier, sampling_prob, 10_000, 64)
    start = time.perf_counter()
    spent = acc.epsilon(run, DELTA, "tight")
    assert time.perf_counter() - start < 10.0
    assert acc.epsilon(run.one_record(), DELTA) <= spent <= acc.epsilon(run, DELTA, "group")
    whole = acc.NoAmplification(noise_multiplier / 64.0, 10_000)  # as if every record were used in every step
    assert spent <= acc.epsilon(whole, DELTA)


@pytest.mark.parametrize("method", ["tight", "group", "record"])
def test_one_record_per_user_is_the_poisson_sampled_gaussian(method: str) -> None:
    run = acc.RecordLevel(1.0, 0.05, 200, records_per_user=1)
    assert acc.epsilon(run, DELTA, method) == pytest.approx(
        acc.epsilon(acc.PoissonUsers(1.0, 0.05, 200), DELTA), rel=1e-3
    )


def test_tight_without_sampling_is_the_gaussian_at_sigma_over_k() -> None:
    run = acc.RecordLevel(10.0, 1.0, 20, records_per_user=5)
    assert acc.epsilon(run, DELTA, "tight") == acc.epsilon(acc.PoissonUsers(2.0, 1.0, 20), DELTA)
    almost = dataclasses.replace(run, sampling_prob=1.0 - 1e-9)
    assert acc.epsilon(almost, DELTA, "tight") == pytest.approx(acc.epsilon(run, DELTA, "tight"), rel=1e-3)


def test_group_epsilon_is_the_conversion_of_its_own_record_level_guarantee() -> None:
    run = acc.RecordLevel(10.226, 0.05, 200, 10)
    epsilon_user = acc.epsilon(run, DELTA, "group")
    epsilon_record, delta_record = acc.to_record_level(epsilon_user, DELTA, 10)
    assert acc.epsilon(run, delta_record, "record") <= epsilon_record
    assert acc.delta(run, epsilon_user, "group") <= DELTA * (1 + 1e-3)
    closer, delta_closer = acc.to_record_level(0.99 * epsilon_user, DELTA, 10)
    assert acc.epsilon(run, delta_closer, "record") > closer


def test_group_delta_is_one_where_the_conversion_is_vacuous() -> None:
    delta = acc.delta(acc.RecordLevel(1.0, 0.05, 200, 20), 1.0, "group")
    assert delta == 1.0
    assert acc.is_vacuous(delta)


def test_group_delta_does_not_grow_with_epsilon_and_epsilon_finds_it() -> None:
    """The conversion's own delta is least near epsilon 5.2 here and grows beyond: more epsilon must not cost more."""
    run = acc.RecordLevel(1.0, math.exp(-4.0), 1, 12)
    deltas = [acc.delta(run, epsilon, "group") for epsilon in (1.0, 3.0, 5.2, 7.4, 9.6, 25.0)]
    assert all(later <= earlier * (1.0 + 1e-4) for earlier, later in itertools.pairwise(deltas))
    assert deltas[-1] == pytest.approx(deltas[2], rel=1e-3)
    assert acc.epsilon(run, 1.01 * deltas[2], "group") < 5.3


@pytest.mark.parametrize("records", [10, 100, 1000])
def test_group_privacy_of_many_records_neither_overflows_nor_flatters(records: int) -> None:
    run = acc.RecordLevel(1.0, 0.05, 200, records)
    assert math.isfinite(acc.epsilon(run, DELTA, "group"))
    assert acc.epsilon(run, DELTA, "group") > acc.epsilon(run, DELTA, "tight")


@pytest.mark.parametrize("method", ["group", "tight", "record"])
def test_delta_inverts_epsilon(method: str) -> None:
    run = acc.RecordLevel(3.0, 0.05, 100, 4)
    assert acc.delta(run, acc.epsilon(run, DELTA, method), method) == pytest.approx(DELTA, rel=5e-3)


def test_record_level_calibration_makes_no_user_level_claim() -> None:
    run = acc.calibrate(acc.RecordLevel(1.0, 0.05, 200, 10), epsilon=1.0, delta=DELTA, method="record")
    assert acc.epsilon(run, DELTA, "record") <= 1.0 < acc.epsilon(run, DELTA, "tight")


def test_search_over_record_level_runs_converts_the_cost_of_the_search() -> None:
    run = acc.RecordLevel(20.0, 0.05, 200, 2)
    searched = acc.HyperparameterSearch(run, mean_runs=10.0)
    assert acc.epsilon(searched, DELTA) > acc.epsilon(run, DELTA)
    found = acc.calibrate(searched, epsilon=3.0, delta=DELTA)
    assert 2.97 <= acc.epsilon(found, DELTA) <= 3.0


def test_search_costs_more_the_more_runs_are_made() -> None:
    run = acc.PoissonUsers(2.0, 0.05, 200)
    costs = [acc.epsilon(acc.HyperparameterSearch(run, mean), DELTA) for mean in (2.0, 10.0, 100.0)]
    assert acc.epsilon(run, DELTA, "rdp") < costs[0] < costs[1] < costs[2]
    assert math.isfinite(acc.epsilon(acc.HyperparameterSearch(run, 10.0, math.inf), DELTA))


def test_epsilon_per_round_ends_at_the_epsilon_of_the_run() -> None:
    run = acc.PoissonUsers(1.0, 0.05, 60)
    spent = acc.epsilon_per_round(run, DELTA)
    assert len(spent) == 60
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(acc.epsilon(run, DELTA), rel=1e-3)
    assert acc.epsilon_per_round(run, DELTA, [60, 1]) == pytest.approx([spent[59], spent[0]], rel=1e-3)
    assert acc.epsilon_per_round(run, DELTA, 3) == spent[:3]


def test_epsilon_per_round_without_amplification_stops_at_the_declared_participations() -> None:
    spent = acc.epsilon_per_round(acc.NoAmplification(2.0, 3), DELTA, 6)
    assert spent[2:] == [spent[2]] * 4
    assert spent[0] < spent[1] < spent[2]


def test_search_has_no_rounds() -> None:
    with pytest.raises(acc.AccountingError, match="no rounds"):
        acc.epsilon_per_round(acc.HyperparameterSearch(acc.PoissonUsers(1.0, 0.1, 10), 5.0), DELTA)


def test_swamped_privacy_loss_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pld.epsilon
    monkeypatch.setattr(curves.pld, "epsilon", lambda composition, log_delta: 1.5 * honest(composition, log_delta))
    with pytest.raises(acc.AccountingError, match="worse than RDP"):
        acc.epsilon(acc.PoissonUsers(24.0, 0.01, 1000), DELTA)


def test_large_noise_does_not_swamp_the_grid() -> None:
    found = acc.calibrate(acc.PoissonUsers(1.0, 0.01, 1000), epsilon=0.05, delta=DELTA)
    assert found.noise_multiplier < 23.8  # dp_accounting at interval 1e-4; 44.8 at 1e-3; RDP says 27.2


def test_target_out_of_reach_is_refused() -> None:
    with pytest.raises(acc.AccountingError, match="out of reach"):
        acc.calibrate(acc.NoAmplification(1.0, 10), epsilon=1e-9, delta=1e-12)


def test_calibration_stays_below_a_jump_of_epsilon() -> None:
    """RDP falls from 0.011 to 0 at some noise, where its bound on the total variation distance takes over."""
    found = acc.calibrate(acc.PoissonUsers(1.0, 0.05, 200), epsilon=1e-3, delta=DELTA, method="rdp")
    assert acc.epsilon(found, DELTA, "rdp") == 0.0
    assert acc.epsilon(found.with_noise_multiplier(0.999 * found.noise_multiplier), DELTA, "rdp") > 1e-3


@pytest.mark.slow
def test_calibration_at_a_jump_of_the_group_epsilon_is_confirmed_by_the_epsilon_itself() -> None:
    run = acc.RecordLevel(1.0, sampling_prob=0.0014901391483775164, steps=46, records_per_user=46)
    target, delta = 46.70027251047952, 3.927863545481039e-07
    found = acc.calibrate(run, epsilon=target, delta=delta, method="group")
    assert acc.epsilon(found, delta, "group") <= target
    less = found.with_noise_multiplier(0.999 * found.noise_multiplier)
    assert acc.epsilon(less, delta, "group") > 100 * target


def test_import_needs_neither_torch_nor_flower_nor_hydra_and_is_quick() -> None:
    code = (
        "import sys, fedsim_userdp.privacy.accounting\n"
        "heavy = {'torch', 'flwr', 'hydra', 'dp_accounting', 'opacus', 'transformers', 'ray'} & set(sys.modules)\n"
        "raise SystemExit(str(heavy) if heavy else 0)"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_typical_answers_are_quick() -> None:
    run = acc.PoissonUsers(1.0, 0.05, 200)
    acc.epsilon(run, DELTA)
    start = time.perf_counter()
    acc.epsilon(run, 1.1e-5)
    middle = time.perf_counter()
    acc.calibrate(run, epsilon=2.0, delta=DELTA)
    assert middle - start < 0.5
    assert time.perf_counter() - middle < 3.0

import pytest

from fedsim_userdp.privacy.delta import default_delta, is_large, large_delta_in_words, users_needed


def test_default_delta_is_below_one_over_the_number_of_users() -> None:
    for num_users in (2, 7, 805, 10**6):
        assert 0 < default_delta(num_users) < 1 / num_users
    assert default_delta(7) == pytest.approx(0.1176, rel=1e-3)


@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-5, 1e-9])
def test_users_needed_is_the_least_number_whose_default_delta_is_small_enough(delta: float) -> None:
    number = users_needed(delta)
    assert default_delta(max(number, 2)) <= delta
    assert (number - 1) ** -1.1 > delta if number > 2 else True


def test_a_delta_of_1e_minus_5_wants_35112_users() -> None:
    assert users_needed(1e-5) == 35_112


def test_a_delta_above_a_thousandth_is_put_into_words() -> None:
    words = str(large_delta_in_words(0.118))
    assert "one user in 8 could be published whole" in words
    assert "35,112 users" in words
    assert is_large(0.00101)
    assert large_delta_in_words(1e-3) is None
    with pytest.raises(ValueError, match="num_users"):
        default_delta(1)

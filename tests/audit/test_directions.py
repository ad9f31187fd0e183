import numpy as np
import pytest

from fedsim_userdp.audit.directions import Directions


@pytest.mark.parametrize("size", [700, 1024, 3000])
@pytest.mark.parametrize("num_candidates", [64, 1024, 4096])
def test_inner_products_are_those_with_the_directions_and_all_have_norm_one(size: int, num_candidates: int) -> None:
    directions = Directions(size, num_candidates, seed=3)
    vectors = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)
    products = directions.inner_products(7, vectors)
    assert products.shape == (5, num_candidates)
    for candidate in {0, 1, 37, num_candidates // 2, num_candidates - 1}:
        direction = directions.direction(7, candidate)
        assert float(np.linalg.norm(direction)) == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(vectors @ direction, products[:, candidate], atol=1e-4)


@pytest.mark.parametrize(("size", "most"), [(1024, 0.16), (1500, 0.36), (2047, 0.16)])
def test_no_two_candidates_are_alike(size: int, most: float) -> None:
    """Six standard deviations of random directions, or the overlap of columns begun again."""
    directions = Directions(size, 4096, seed=1)
    everyone = np.stack([directions.direction(0, candidate) for candidate in range(0, 4096, 8)])
    for candidate in (0, 100, 1023, 1024, 4095):
        cosines = np.abs(everyone @ directions.direction(0, candidate))
        cosines[candidate // 8] = 0 if candidate % 8 == 0 else cosines[candidate // 8]
        assert cosines.max() < most
        assert np.abs(directions.inner_products(1, directions.direction(0, candidate)[None])).max() < 0.22


def test_candidates_within_a_family_are_orthogonal_where_it_fits_the_size() -> None:
    directions = Directions(1024, 512, seed=0)
    some = np.stack([directions.direction(2, candidate) for candidate in range(64)])
    np.testing.assert_allclose(some @ some.T, np.eye(64), atol=1e-5)


@pytest.mark.parametrize("num_candidates", [0, 1, 3, 1000, 2**21, True])
def test_a_number_of_candidates_that_is_no_power_of_two_is_refused(num_candidates: int) -> None:
    with pytest.raises(ValueError, match=r"audit\.candidates"):
        Directions(100, num_candidates, 0)

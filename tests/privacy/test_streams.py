import itertools

import pytest

from fedsim_userdp.privacy.streams import STREAMS, numpy_generator


def test_same_address_gives_the_same_numbers() -> None:
    a = numpy_generator(1, "noise", round=3, user="x").random(5)
    assert (a == numpy_generator(1, "noise", round=3, user="x").random(5)).all()


def test_different_addresses_give_different_numbers() -> None:
    addresses = itertools.product([0, 1], sorted(STREAMS), [0, 1, 12], ["", "1", "a", "a\n", "\ud800"])
    drawn = [numpy_generator(s, stream, round=r, user=u).integers(2**63) for s, stream, r, u in addresses]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"round": -1}, {"stream": "nosuch"}])
def test_unknown_addresses_are_refused(bad: dict) -> None:
    arguments = {"seed": 0, "stream": "noise", "round": 0} | bad
    with pytest.raises(ValueError, match=r"seed|stream"):
        numpy_generator(arguments["seed"], arguments["stream"], round=arguments["round"])

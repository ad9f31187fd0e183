"""A privacy curve: the two answers that an accountant has about one run."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Curve:
    """The two answers of an accountant; both are upper bounds.

    Attributes:
        epsilon: log delta < 0 -> epsilon in [0, inf).
        log_delta: epsilon >= 0 -> log delta <= 0.
    """

    epsilon: Callable[[float], float]
    log_delta: Callable[[float], float]

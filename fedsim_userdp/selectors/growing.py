"""Cohorts that grow from round to round, as privacy allows larger steps towards the end of training."""

from dataclasses import dataclass

from fedsim_userdp.population import Past, Population


@dataclass(frozen=True)
class GrowingSelector:
    """Samples every user with a probability that goes from `first_prob` to `last_prob` over `rounds` rounds.

    Attributes:
        first_prob: of round 1, in (0, 1].
        last_prob: of round `rounds` and later, in (0, 1].
        rounds: rounds over which it changes, at least 2.
    """

    first_prob: float
    last_prob: float
    rounds: int

    follows_population = False  # a user's probability does not depend on who else there is

    def __post_init__(self) -> None:
        for name, prob in (("first_prob", self.first_prob), ("last_prob", self.last_prob)):
            if not 0 < prob <= 1:
                raise ValueError(f"{name}={prob} must lie in (0, 1]")
        if self.rounds < 2:
            raise ValueError(f"rounds={self.rounds} must be at least 2")

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        """Returns the round's point of the line."""
        share = min(round - 1, self.rounds - 1) / (self.rounds - 1)
        return self.first_prob + share * (self.last_prob - self.first_prob)

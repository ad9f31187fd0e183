"""With noise of the operating system, what is published tells no cohort, the selector's source and the ids known."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import UserWise, acc, run
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.participation import Cohorts, draw_cohort
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selectors import PowerOfChoiceSelector, StratifiedSelector
from fedsim_userdp.signals import Signal
from tests.mechanisms.test_stated_selection import study_of

ROUNDS = 6
# So many users that two unrelated keys give one cohort of a round with a probability below 1e-10.
PAIRS = [(f"u{user}", f"the house of the people and so it was said {user}") for user in range(63)]
FACTS = {"user_id": [user for user, _ in PAIRS], "region": ["n", "s", "s"] * 21}


class Draws:
    """Draws by the generator that it is given, as README's example of a selector may."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        return np.flatnonzero(generator.random(num_users) < 0.5)

    def expected_cohort_size(self, num_users: int) -> float:
        return num_users / 2

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return acc.PoissonUsers(noise_multiplier, 0.5, rounds)


SELECTORS: dict[str, Any] = {
    "stated": StratifiedSelector("region", 10),
    "follows what was told": PowerOfChoiceSelector(24, 0.6, {"loss": Signal(8.0, "region")}),
    "of one's own": Draws(),
}


@dataclass
class Secret:
    """What a run kept to itself, and the identity that its seeded key would follow from, which is known."""

    study: Any
    identity: str = ""
    cohorts: dict[int, list[int]] = field(default_factory=dict)
    histories: set[str] = field(default_factory=set)

    def draws_alike(self, key: RunKey) -> int:
        """In how many rounds a key gives the cohort that there was."""
        study = self.study
        drawn = {r: draw_cohort(study.selector, study.population, r, key).tolist() for r in self.cohorts}
        return sum(drawn[r] == self.cohorts[r] for r in self.cohorts)


def released(selector: Any, folder: Path, source: str) -> Secret:
    """Runs, and returns what is to be kept secret."""
    found = Secret(study_of(selector, PAIRS, public=FACTS, noise=source))
    draw, init = Cohorts.draw, Run.of.__func__  # type: ignore[attr-defined]

    def drawn(self: Cohorts, round: int) -> list[int]:
        found.cohorts[round] = cohort = draw(self, round)
        found.histories |= {repr(cohort), repr((round, cohort)), self.history}
        return cohort

    def made(cls: type[Run], *arguments: Any, **keywords: Any) -> Run:
        one: Run = init(cls, *arguments, **keywords)
        found.identity = one.identity
        return one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohorts, "draw", drawn)
        patch.setattr(Run, "of", classmethod(made))
        run(found.study, UserWise(rounds=ROUNDS), folder)
    return found


def published(folder: Path) -> Iterator[Path]:
    """The files of a run folder that its statement does not call private."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and "not_private" not in file.parts)


def words_in(folder: Path) -> set[str]:
    """Every number of 64 hexadecimal digits, and every whole number, that is published."""
    texts = [file.read_bytes().decode("latin-1") for file in published(folder)]
    return {word for text in texts for word in re.findall(r"[0-9a-f]{64}|\b\d{1,18}\b", text)}


def keys_from(folder: Path, identity: str) -> Iterator[RunKey]:
    """Keys that somebody may try who has read all that is published."""
    for word in words_in(folder):
        if len(word) == 64:
            yield RunKey(bytes.fromhex(word), is_seeded=False)
            yield RunKey(hashlib.sha256(bytes.fromhex(word)).digest(), is_seeded=False)
        else:
            yield RunKey.seeded(int(word), identity)
            yield RunKey.seeded(int(word))


def confirmed(folder: Path, secret: Secret) -> list[str]:
    """Guesses of the cohorts that something published confirms: digests of them, plain or under a published key."""
    words, keys = words_in(folder), list(keys_from(folder, secret.identity))
    found = [one for one in secret.histories if one and hashlib.sha256(one.encode()).hexdigest() in words]
    guesses = [one for one in secret.histories if one]
    found += [one for one in guesses for key in keys for what in ("cohorts", "answers") if key.mark(what, one) in words]
    return found


@pytest.mark.parametrize("kind", SELECTORS)
def test_of_a_release_no_cohort_can_be_drawn_again_or_confirmed(kind: str, tmp_path: Path) -> None:
    secret = released(SELECTORS[kind], tmp_path / "run", "os")
    assert len(secret.cohorts) == ROUNDS
    assert max(map(secret.draws_alike, keys_from(tmp_path / "run", secret.identity))) < 3
    assert confirmed(tmp_path / "run", secret) == []


@pytest.mark.parametrize("kind", ["stated", "of one's own"])
def test_of_a_simulation_they_can_so_that_the_attack_is_one(kind: str, tmp_path: Path) -> None:
    secret = released(SELECTORS[kind], tmp_path / "run", "seeded")
    assert max(map(secret.draws_alike, keys_from(tmp_path / "run", secret.identity))) == ROUNDS
    (tmp_path / "run" / "slip.json").write_text(
        json.dumps(hashlib.sha256(repr(secret.cohorts[2]).encode()).hexdigest())
    )
    assert confirmed(tmp_path / "run", secret) == [repr(secret.cohorts[2])]


def leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of JSON, by dotted key."""
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if parts is None:
        yield key, node
        return
    for name, one in parts:
        yield from leaves(one, f"{key}.{name}")


def rows_of(folder: Path) -> Iterator[tuple[str, object]]:
    """All that is published but the model, as leaves by file and key, paths of the run's own folder aside."""
    for file in published(folder):
        name = file.relative_to(folder).as_posix()
        text = file.read_bytes().decode("latin-1").replace(str(folder), "FOLDER")
        if file.suffix == ".json":
            yield from leaves(json.loads(text), name)
        elif file.suffix == ".jsonl":
            yield from leaves([json.loads(line) for line in text.splitlines()], name)
        elif file.suffix == ".csv":
            yield from leaves(list(csv.DictReader(text.splitlines())), name)
        elif file.suffix in (".md", ".yaml"):
            yield from leaves(text.splitlines(), name)


# What may differ: digests under a secret key and of the model, and what the folder itself calls not private.
MAY_DIFFER = (
    r"ledger/.*\.(answers|cohorts|draw|hash|previous|run|sealed)",
    r"privacy\.json\.runs\.0\.(draws\.0|adapter)",
    r"PRIVACY\.md\.\d+",
    r"adapters/user_wise/README\.md\.\d+",
    r"results\.(csv|json)\.0\.\w+",
)


def test_two_releases_under_the_same_settings_differ_in_digests_and_the_model_alone(tmp_path: Path) -> None:
    """Nothing published follows from who was drawn, but what is noisy and what is said to be not private."""
    selector = SELECTORS["follows what was told"]
    cohorts = [released(selector, tmp_path / name, "os").cohorts for name in ("one", "two")]
    assert cohorts[0] != cohorts[1]
    one, two = (dict(rows_of(tmp_path / name)) for name in ("one", "two"))
    assert one.keys() == two.keys()
    differing = [key for key in one if one[key] != two[key]]
    assert [key for key in differing if not any(re.fullmatch(pattern, key) for pattern in MAY_DIFFER)] == []
    told = set(str(one["results.json.0.not_private"]).split(", ")) | {"seconds"}
    assert {key.rpartition(".")[2] for key in differing if key.startswith("results")} <= told
    (sentence,) = [one[key] for key in differing if key.startswith("PRIVACY")]
    assert "sha256 of `privacy.json`" in str(sentence)
    (sentence,) = [one[key] for key in differing if key.startswith("adapters")]
    assert "not private" in str(sentence)

"""The settings of a study, one class a section: the YAML section, the flag and the keyword argument are these fields.

Whatever has no class here is an object of its own, such as the selection of users or the server's optimizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from fedsim_userdp.errors import ConfigError, DataError
from fedsim_userdp.naming import settings_of


@dataclass(frozen=True)
class Budget:
    """The user-level target that every mechanism is held to.

    Attributes:
        epsilon: user-level target; inf trains without noise.
        delta: null: N_users^-1.1; never above 1/N_users.
        num_searched: runs on these users that the settings were chosen among, for the privacy statement; null:
            tuned.searched where it was on this corpus, else 1.
    """

    epsilon: float = 8.0
    delta: float | None = None
    num_searched: int | None = None


@dataclass(frozen=True)
class Noise:
    """Where noise comes from.

    Attributes:
        source: seeded (simulation, repeatable) or os (a real release, never repeatable).
    """

    source: Literal["seeded", "os"] = "seeded"


@dataclass(frozen=True)
class Split:
    """Who trains, who is scored and who tunes.

    Attributes:
        heldout_users: users that are only scored.
        validation_users: users set aside for tuning, neither trained on nor held out.
        seed: of the hash of ids that decides who is which.
    """

    heldout_users: int = 100
    validation_users: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Whom perplexity is computed on, and when.

    Attributes:
        users: heldout, or validation when tuning.
        records_per_user: the most records scored of each user.
        every: rounds between evaluations.
    """

    users: Literal["heldout", "validation"] = "heldout"
    records_per_user: int = 4
    every: int = 3


@dataclass(frozen=True)
class Checkpointing:
    """How a run can be gone on with.

    Attributes:
        every: rounds between checkpoints; the last round always has one, with noise.source=os every round.
        keep: the latest ones that stay.
        allow_changes: resume=PATH with other settings, data or code than before; never with another promise.
    """

    every: int = 5
    keep: int = 2
    allow_changes: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} must be a whole number of at least 1")


@dataclass(frozen=True)
class Local:
    """What a user does in a round.

    Attributes:
        steps: gradient steps of a user in a round; more than 1 is DP-FedAvg.
        learning_rate: of those steps; without effect when there is one.
        max_tokens: most padded tokens of a micro-batch, or of one user if more; null: from the device's memory.
    """

    steps: int = 1
    learning_rate: float = 0.1
    max_tokens: int | None = None


@dataclass(frozen=True)
class Central:
    """Training on records instead of users.

    Attributes:
        engine: what record-level DP-SGD runs on: opacus (the reference) or stacked (this package's own).
    """

    engine: Literal["opacus", "stacked"] = "opacus"


@dataclass(frozen=True)
class TokenSettings:
    """How records become tokens.

    Attributes:
        window: most tokens of a record, marks of beginning and end included; at least 2.
        long_records: split: a longer record is cut into windows, each a record; truncate: its first window is kept.
        min_tokens: records and windows with fewer tokens, their beginning mark aside, are left out; in [2, window].
        min_words: users with fewer words in all their text are left out; 0 keeps everybody.
        append_eos: whether a record ends with the tokenizer's end-of-text token.
        prepend_bos: whether a record, and each window of one, begins with the tokenizer's beginning-of-text token;
            auto: where the tokenizer itself puts it before a text.

    Raises:
        DataError: a value outside its range.
    """

    window: int = 64
    long_records: Literal["split", "truncate"] = "split"
    min_tokens: int = 8
    min_words: int = 64
    append_eos: bool = True
    prepend_bos: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        if self.window < 2:
            raise DataError(f"window must be at least 2 tokens, got {self.window}")
        if not 2 <= self.min_tokens <= self.window:
            raise DataError(f"min_tokens must be from 2 to window ({self.window}), got {self.min_tokens}")
        if self.min_words < 0:
            raise DataError(f"min_words must be at least 0, got {self.min_words}")
        if self.long_records not in ("split", "truncate"):
            raise DataError(f"long_records must be 'split' or 'truncate', got {self.long_records!r}")
        if self.prepend_bos != "auto" and not isinstance(self.prepend_bos, bool):
            raise DataError(f"prepend_bos must be auto, true or false, got {self.prepend_bos!r}")


@dataclass(frozen=True)
class LoraSettings:
    """How the adapter is built; see `peft.LoraConfig`.

    Attributes:
        rank: inner dimension of each pair of factors, at least 1.
        alpha: updates are scaled by alpha / rank, or alpha / sqrt(rank) with use_rslora; above 0.
        target_modules: names of the layers to adapt, or all-linear.
        dropout: probability with which a feature of a layer's input is hidden from its factors, in [0, 1); masks are
            each record's own, so that results do not depend on batches.
        use_rslora: rank-stabilised scaling.
        freeze_a: FFA-LoRA (arXiv 2403.12313): train only the factor that starts from 0, so that averaging is exact; see
            docs/decisions/0005-freeze-a-by-default.md.

    Raises:
        ValueError: when `rank`, `alpha` or `dropout` is out of range, or `target_modules` is neither a name nor a
            non-empty sequence of names.
    """

    rank: int = 8
    alpha: float = 8
    target_modules: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    use_rslora: bool = False
    freeze_a: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        names = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"target_modules={names} must be names of layers, or all-linear")


@dataclass(frozen=True)
class Settings:
    """All sections, and what belongs to none.

    Attributes:
        seed: of everything drawn at random: adapter, selection, records, simulated noise.
        cache_dir: token stores, scores, measurements and converted models; null: FEDSIM_CACHE_DIR, else the user's
            cache folder, where results of the accounting are kept in any case.
        threads: CPU threads of torch; null: torch's default.
        privacy: the user-level target.
        noise: where noise comes from.
        tokens: how records become tokens.
        split: who trains.
        evaluation: who is scored.
        checkpoint: how a run can be gone on with.
        lora: the adapter.
        local: what a user does in a round.
        central: training on records.
    """

    seed: int = 0
    cache_dir: str | None = None
    threads: int | None = None
    privacy: Budget = field(default_factory=Budget)
    noise: Noise = field(default_factory=Noise)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    split: Split = field(default_factory=Split)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    lora: LoraSettings = field(default_factory=LoraSettings)
    local: Local = field(default_factory=Local)
    central: Central = field(default_factory=Central)

    def __post_init__(self) -> None:
        if self.threads is not None and not (isinstance(self.threads, int) and 1 <= self.threads <= 1024):
            raise ConfigError(f"threads={self.threads} must be a whole number from 1 to 1024, or null")

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Self:
        """Returns the settings that a tree holds in the sections of these names; other keys are no part of them.

        Raises:
            ConfigError: a section has a key that is none of its settings.
        """
        given: dict[str, Any] = {}
        for one in fields(cls):
            kind = SECTIONS.get(one.name)
            if one.name in tree:
                given[one.name] = tree[one.name] if kind is None else _section(kind, one.name, tree[one.name])
        return cls(**given)

    def to_tree(self) -> dict[str, Any]:
        """Returns the sections as nested mappings, of lists and plain values."""
        return {
            name: {key: list(one) if isinstance(one, tuple) else one for key, one in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in asdict(self).items()
        }


SECTIONS: dict[str, type] = {
    "privacy": Budget,
    "noise": Noise,
    "tokens": TokenSettings,
    "split": Split,
    "evaluation": Evaluation,
    "checkpoint": Checkpointing,
    "lora": LoraSettings,
    "local": Local,
    "central": Central,
}


def _section(kind: type, name: str, values: Mapping[str, Any]) -> object:
    """The section of a name with these settings."""
    known = {one.name for one in fields(kind)}
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"there is no setting {name}.{unknown[0]}: expected one of {', '.join(sorted(known))}")
    with settings_of(name, kind):
        return kind(**{str(key): tuple(value) if isinstance(value, list) else value for key, value in values.items()})

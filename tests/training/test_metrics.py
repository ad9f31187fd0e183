"""Further figures on the evaluation users: right, shown, and without any effect on what is trained."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from fedsim_userdp import ModelSource, Study, UserWise, run
from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.evaluation import perplexity
from fedsim_userdp.training.metrics import BitsPerByte, NextTokenAccuracy, scored

TEXTS = ["the house of the people", "and so it was said", "government by law", "a great year, it is said"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return ModelSource().load_tokenizer()


@pytest.fixture
def model() -> nn.Module:
    return attach_lora(ModelSource(device="cpu").load(), LoraSettings(), 0)


@pytest.fixture
def users(tokenizer: PreTrainedTokenizerBase) -> list[Unit]:
    records = [np.array(tokenizer(text)["input_ids"]) for text in TEXTS]
    return [Unit(0, records[:3]), Unit(1, records[3:])]


def test_accuracy_is_the_share_of_tokens_that_are_the_likeliest(
    model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    right = total = 0
    for record in (record for user in users for record in user.records):
        ids = torch.as_tensor(record)[None]
        with torch.inference_mode():
            guessed = model(input_ids=ids).logits.argmax(-1)
        right, total = right + int((guessed[0, :-1] == ids[0, 1:]).sum()), total + ids.shape[1] - 1
    assert 0 < right < total
    assert scored({"a": NextTokenAccuracy()}, model, users, tokenizer) == {"a": right / total}


def test_bits_per_byte_is_the_loss_in_bits_over_the_bytes_that_are_predicted(
    model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    records = [record for user in users for record in user.records]
    tokens = sum(len(record) - 1 for record in records)
    first = [tokenizer.decode(record[:1].tolist()) for record in records]
    num_bytes = sum(len(text.encode()) for text in TEXTS) - sum(len(text.encode()) for text in first)
    bits = math.log2(perplexity(model, users)) * tokens
    assert scored({"b": BitsPerByte()}, model, users, tokenizer)["b"] == pytest.approx(bits / num_bytes, rel=1e-5)


def test_text_without_bytes_has_no_bits_per_byte(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    (end,) = tokenizer.encode("<|endoftext|>") if tokenizer.eos_token is None else [tokenizer.eos_token_id]
    found = scored({"b": BitsPerByte()}, model, [Unit(0, [np.array([5, end])])], tokenizer)
    assert math.isnan(found["b"])


class Meddles:
    """Changes the model that it is to score."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        model.train()
        for parameter in model.parameters():
            parameter.data.zero_()
        return 1.0


class Answers:
    """Gives what it was told to."""

    def __init__(self, answer: object = 1.0) -> None:
        self.answer = answer

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        if isinstance(self.answer, str) and self.answer.startswith("raises"):
            raise RuntimeError("no such figure")
        return self.answer  # type: ignore[return-value]


def test_a_metric_that_changes_the_model_is_refused_and_the_adapter_is_as_before(
    model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if "lora_" in name}
    assert len(before) == 2 * sum(tensor.requires_grad for tensor in model.parameters())
    with pytest.raises(PluginError, match=r"metrics.m=.*Meddles: score\(\) changed the model"):
        scored({"m": Meddles()}, model, users, tokenizer)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    assert not model.training


class MeddlesWithBase:
    """Changes one weight of the base model."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        frozen = next(one for name, one in model.named_parameters() if "lora_" not in name and one.ndim == 2)
        frozen.data[0, 0] += 1.0
        return 1.0


class MeddlesWithRecords:
    """Changes whom the next metric is scored on, and the tokenizer."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        assert all(record.base is None for user in users for record in user.records)  # a view would lead further
        tokenizer.add_tokens(["house of the people"])
        users[0].records[0][:] = 5
        return 1.0


@pytest.mark.parametrize(("kind", "what"), [(MeddlesWithBase, "the model"), (MeddlesWithRecords, "records")])
def test_a_metric_that_changes_what_the_next_one_scores_is_refused(
    kind: type, what: str, model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    before, known = [record.copy() for user in users for record in user.records], len(tokenizer)
    with pytest.raises(PluginError, match=rf"{kind.__name__}: score\(\) changed {what}, which it may only read"):
        scored({"m": kind()}, model, users, tokenizer)
    assert all(map(np.array_equal, before, [record for user in users for record in user.records]))
    assert len(tokenizer) == known


class Sly:
    """Is of no class that can be asked for."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no such class")


class AnswersSlyly:
    """Gives an object of such a class."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        return Sly()  # type: ignore[return-value]


NO_NUMBERS: list[object] = [
    None,
    "1",
    True,
    [1.0],
    {},
    torch.zeros(2),
    "raises",
    10**400,
    torch.tensor(1j),
    torch.ones(0),
]


@pytest.mark.parametrize("answer", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(
    answer: object, model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    said = r"score\(\) raised RuntimeError: no such figure" if answer == "raises" else r"score\(\) must return a number"
    with pytest.raises(PluginError, match=rf"metrics.m=.*Answers: {said}"):
        scored({"m": Answers(answer)}, model, users, tokenizer)


def test_an_answer_that_cannot_be_looked_at_is_refused_by_name(
    model: nn.Module, users: list[Unit], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(PluginError, match=r"metrics.m=.*AnswersSlyly: the answer of score\(\) raised RuntimeError"):
        scored({"m": AnswersSlyly()}, model, users, tokenizer)


class LaterTooLarge:
    """Gives a number when it is tried out, and none after training."""

    left = 1

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        type(self).left -= 1
        return 1.0 if self.left == 0 else 10**400


def test_a_number_beyond_double_precision_after_training_is_an_empty_cell(
    tmp_path: Path,
) -> None:
    result = run(small_study(metrics={"own": LaterTooLarge()}), UserWise(rounds=1), tmp_path / "run")
    assert result.rows[0].metrics == {"own": None}
    assert json.loads((tmp_path / "run" / "results.json").read_text())[0]["metrics"] == {"own": None}


def small_study(**given: object) -> Study:
    pairs = [(f"u{user}", f"{TEXTS[user % 4]} and {TEXTS[(user + 1) % 4]} {user}") for user in range(16)]
    small: dict[str, object] = {"heldout_users": 4, "min_words": 0, "window": 16, "tokens": {"min_tokens": 2}}
    return Study.of(pairs, model=ModelSource(device="cpu"), **{**small, **given})  # type: ignore[arg-type]


def test_metrics_are_in_results_table_and_card_and_change_nothing_that_is_trained(tmp_path: Path) -> None:
    plain = run(small_study(), UserWise(rounds=1), tmp_path / "plain")
    given = {"accuracy": NextTokenAccuracy(), "bits": BitsPerByte(), "own": Answers(float("nan"))}
    result = run(small_study(metrics=given), UserWise(rounds=1), tmp_path / "scored")
    (stored,) = json.loads((tmp_path / "scored" / "results.json").read_text())
    assert stored["metrics"] == dict(result.rows[0].metrics)
    assert 0 <= stored["metrics"]["accuracy"] <= 1 < stored["metrics"]["bits"]
    assert stored["metrics"]["own"] is None
    (row,) = csv.DictReader((tmp_path / "scored" / "results.csv").open())
    assert (float(row["metric_accuracy"]), row["metric_own"]) == (stored["metrics"]["accuracy"], "")
    assert "bits" in str(result.table())
    assert "On the same users: accuracy" in next((tmp_path / "scored").glob("adapters/*/README.md")).read_text()
    assert "Answers, which is not part of this package" in (tmp_path / "scored" / "PRIVACY.md").read_text()
    weights = [
        load_file(next((tmp_path / name).glob("adapters/*/adapter_model.safetensors"))) for name in ("plain", "scored")
    ]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert plain.rows[0].metrics == {}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"own": Answers("raises")}, "metrics.own=.*Answers.* raised RuntimeError: no such figure"),
        ({"own": Answers()} | {"a b": Answers()}, r"metrics.a b: a metric's name must be a letter, then"),
        ({"own": Answers}, "metrics.own=the class Answers must be an object, made by its class"),
        ({"own": 3}, "metrics.own=3 must be an object"),
        ({"own": TEXTS}, "must be an object"),
        ({"own": ModelSource()}, r"metrics.own=.*ModelSource has no score\(\)"),
        ([Answers()], "metrics=list must be a mapping of names to metrics"),
    ],
)
def test_a_metric_that_is_none_is_refused_before_anything_is_written(
    metrics: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(small_study(metrics=metrics), UserWise(rounds=1), tmp_path / "run")
    assert list((tmp_path / "run").glob("*")) == []

import pickle

import numpy as np
import pytest

from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.training import scoring
from fedsim_userdp.training.scoring import BaseModelScorer


def test_scores_are_the_base_models_losses_and_do_not_depend_on_company() -> None:
    scorer = BaseModelScorer(ModelSource(device="cpu"))
    text = ModelSource().load_tokenizer()("The Congress of the United States")["input_ids"]
    noise = np.random.default_rng(0).integers(10, 2000, size=len(text))
    scores = scorer([np.array(text), noise])
    assert scores.shape == (2,)
    assert scores[0] < scores[1]
    assert scorer([np.array(text)])[0] == pytest.approx(scores[0], rel=1e-5)


def test_how_far_scoring_has_come_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(scoring, "SECONDS_BETWEEN_WORDS", 0.0)
    scorer = BaseModelScorer(ModelSource(device="cpu"), batch_size=2)
    for num_records in (3, 1):
        scorer([np.arange(10, 14)] * num_records)
    numbers = [("2", "1"), ("3", "1"), ("4", "2")]
    assert caplog.messages == [f"scoring records: {done} of {users} users so far" for done, users in numbers]


def test_little_scoring_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    BaseModelScorer(ModelSource(device="cpu"))([np.arange(10, 14)])
    assert not caplog.messages


def test_a_pickled_scorer_leaves_the_model_behind() -> None:
    scorer = BaseModelScorer(ModelSource(device="cpu"))
    fingerprint = scorer.fingerprint()
    data = pickle.dumps(scorer)
    assert len(data) < 10_000
    assert pickle.loads(data).fingerprint() == fingerprint  # noqa: S301

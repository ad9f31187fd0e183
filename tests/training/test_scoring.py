import pickle

import numpy as np
import pytest

from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.training.scoring import BaseModelScorer


def test_scores_are_the_base_models_losses_and_do_not_depend_on_company() -> None:
    scorer = BaseModelScorer(ModelSource(device="cpu"))
    text = ModelSource().load_tokenizer()("The Congress of the United States")["input_ids"]
    noise = np.random.default_rng(0).integers(10, 2000, size=len(text))
    scores = scorer([np.array(text), noise])
    assert scores.shape == (2,)
    assert scores[0] < scores[1]
    assert scorer([np.array(text)])[0] == pytest.approx(scores[0], rel=1e-5)


def test_a_pickled_scorer_leaves_the_model_behind() -> None:
    scorer = BaseModelScorer(ModelSource(device="cpu"))
    fingerprint = scorer.fingerprint()
    data = pickle.dumps(scorer)
    assert len(data) < 10_000
    assert pickle.loads(data).fingerprint() == fingerprint  # noqa: S301

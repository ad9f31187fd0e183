"""What training on a pool of records has in common, with noise and without: sampling, denominator, steps."""

from fedsim_userdp.mechanisms.base import Training
from fedsim_userdp.mechanisms.history import History
from fedsim_userdp.mechanisms.persistence import open_run_state
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.naming import settings_of
from fedsim_userdp.participation import expected_share
from fedsim_userdp.training.central import CentralSettings, Pool, RecordStep, train_on_records


def sampling_prob(study: Study, rounds: int) -> float:
    """Returns the probability with which a record is sampled in a step.

    Records are sampled by Poisson sampling, whatever the selection of users: as often as the selection takes a user in
    the mean over users and rounds.
    """
    with settings_of("selection", study.selector):
        return min(expected_share(study.selector, study.population, rounds), 1.0)


def expected_batch_size(study: Study, training: Training, prob: float) -> float:
    """Returns the denominator of a centralized step: q N k.  All of it is public; the number of records is not."""
    return prob * study.num_users * training.records_per_user


def train_centrally(history: History, step: RecordStep, pool: Pool, prob: float) -> None:
    """Takes the steps of a centralized run, on records sampled with a probability, and writes them down."""
    run = history.run
    with open_run_state(history) as state:
        state.restore(step.torch_optimizer)
        settings = CentralSettings(history.num_rounds, prob, run.keys.run)
        for report in train_on_records(step, pool, settings, state.record, state.first):
            history.write_step(report)
            state.save_if_due(report.step, trainable_state(history.model), step.torch_optimizer)
    history.score_last()

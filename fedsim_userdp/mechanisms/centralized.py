"""What training on a pool of records has in common, with noise and without: sampling, denominator, steps."""

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.base import Training
from fedsim_userdp.mechanisms.history import History
from fedsim_userdp.mechanisms.persistence import open_run_state
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.training.central import CentralSettings, Pool, RecordStep, train_on_records


def sampling_prob(study: Study, name: str) -> float:
    """Returns the probability of the Poisson selection: a record is sampled as often as user-wise samples a user."""
    if type(study.selector) is not PoissonSelector:
        raise ConfigError(f"mechanism={name} samples records by Poisson sampling: use selection=poisson")
    return study.selector.sampling_prob


def expected_batch_size(study: Study, training: Training) -> float:
    """Returns the denominator of a centralized step: q N k.  All of it is public; the number of records is not."""
    return sampling_prob(study, training.name) * study.num_users * training.records_per_user


def train_centrally(history: History, step: RecordStep, pool: Pool) -> None:
    """Takes the steps of a centralized run and writes them down."""
    run = history.run
    with open_run_state(history) as state:
        state.restore(step.torch_optimizer)
        settings = CentralSettings(history.num_rounds, sampling_prob(run.study, history.name), run.keys.run)
        for report in train_on_records(step, pool, settings, state.record, state.first):
            history.write_step(report)
            state.save_if_due(report.step, trainable_state(history.model), step.torch_optimizer)
    history.score_last()

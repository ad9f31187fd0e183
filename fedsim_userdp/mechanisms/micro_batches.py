"""Local training as configured, the micro-batch chosen from memory where the configuration leaves it open."""

from importlib.metadata import version
from pathlib import Path

from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.settings import Settings
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.gradients import unit_gradients
from fedsim_userdp.training.memory import activation_bytes_per_token, micro_batch_tokens, remembered_measurement

_FORMAT = 2  # to be raised whenever training keeps more or less for a token


def local_training(settings: Settings, model: ModelSource, cache_dir: Path) -> LocalTraining:
    """Returns the local training of some settings; loads the model once if its activations were never measured."""
    local, lora = settings.local, settings.lora
    if local.max_tokens is not None:
        return LocalTraining(local.steps, local.learning_rate, local.max_tokens)
    LocalTraining(local.steps, local.learning_rate)  # refused before anything is measured
    longest = settings.tokens.window

    def measure() -> float:
        return activation_bytes_per_token(unit_gradients(attach_lora(model.load(), lora, 0), longest), longest)

    question = f"{_FORMAT} {model!r} {lora!r} window={longest} device={model.torch_device.type} {_versions()}"
    bytes_per_token = remembered_measurement(question, cache_dir, measure)
    max_tokens = micro_batch_tokens(bytes_per_token, model.torch_device, longest)
    return LocalTraining(local.steps, local.learning_rate, max_tokens)


def _versions() -> str:
    """What the measurement depends on besides the settings."""
    return " ".join(f"{name}={version(name)}" for name in ("torch", "transformers", "peft"))

"""What several modules of tests share."""

from collections.abc import Iterator

import pytest
import torch

from fedsim_userdp.data.store import TokenStore
from tests.simulations.small_runs import (
    remember_accounting,
    remember_models,
    small_store,
)


@pytest.fixture(scope="module")
def quick_accounting() -> Iterator[None]:
    """The same few questions about the same model in every run."""
    with pytest.MonkeyPatch.context() as patch:
        remember_accounting(patch)
        remember_models(patch)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Twelve users."""
    return small_store(tmp_path_factory.mktemp("store") / "tokens")

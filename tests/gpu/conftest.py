"""Everything here needs a GPU and is skipped without one."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")

import pytest

from fedsim_userdp.data.store import TokenStore
from tests.audit.world import small_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Sixty users of a small federation."""
    return small_store(tmp_path_factory.mktemp("audit-store"))

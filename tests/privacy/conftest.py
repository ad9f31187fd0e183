"""Every test of the accounting starts from an empty cache of its own."""

import json
from pathlib import Path

import pytest

REFERENCE = json.loads((Path(__file__).parent / "reference_accounting.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that answers are kept in during one test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(folder))
    return folder

"""A full device while a token store is written."""

import os
import subprocess
from pathlib import Path

import pytest

from fedsim_userdp.errors import DataError

from .sources import StoreOf, memory_corpus


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_a_store_that_finds_no_room_names_the_file_and_is_built_once_there_is_room(
    tmp_path: Path, store_of: StoreOf, free: int
) -> None:
    corpus = memory_corpus({f"user {n}": ["some words of text " * 40] * 4 for n in range(40)})
    disk = tmp_path / "cache"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes((112 - 24 * free) * 1024))
        with pytest.raises(DataError, match=r"No space left on device: '.*\.(bin|json)'"):
            store_of(corpus)
        os.truncate(filler, 0)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert store_of(corpus).num_users == 40
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)

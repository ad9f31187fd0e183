"""An append-only file of JSON lines beside the checkpoints, which keep only how far it went.

So a checkpoint's size, and the work of writing one, does not grow with the rounds behind it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedsim_userdp.errors import CheckpointError
from fedsim_userdp.naming import naming
from fedsim_userdp.plain_files import make_folder, open_file, read_file, sync_entry


@dataclass(frozen=True)
class JournalEnd:
    """Where a journal ended at some time.

    Attributes:
        num_bytes: its length.
        sha256: digest of its content, in hexadecimal.
    """

    num_bytes: int
    sha256: str

    @classmethod
    def from_json(cls, value: object) -> "JournalEnd":
        """Returns what `to_json` gave.

        Raises:
            CheckpointError: when it is something else.
        """
        if isinstance(value, dict) and value.keys() == {"num_bytes", "sha256"}:
            num_bytes, sha256 = value["num_bytes"], value["sha256"]
            if isinstance(num_bytes, int) and num_bytes >= 0 and isinstance(sha256, str):
                return cls(num_bytes, sha256)
        raise CheckpointError("a checkpoint does not say how far its journal went")

    def to_json(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return asdict(self)


class Journal:
    """A journal that is empty at first, or that `go_back` was called on.

    Args:
        path: the file; its folder is made when need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_bytes, self._digest = 0, hashlib.sha256()

    @property
    def end(self) -> JournalEnd:
        """Where it ends now."""
        return JournalEnd(self._num_bytes, self._digest.hexdigest())

    def append(self, values: Iterable[Mapping[str, object]]) -> None:
        """Adds JSON objects, a line each; they are on the disk when this returns.

        What a process wrote before it was killed, beyond the `end` of the latest checkpoint, is overwritten.
        """
        data = "".join(json.dumps(value) + "\n" for value in values).encode()
        make_folder(self.path.parent)
        is_new = not self.path.exists()
        descriptor = open_file(self.path, os.O_WRONLY | os.O_CREAT)
        with naming(self.path), os.fdopen(descriptor, "wb") as file:
            file.truncate(self._num_bytes)
            file.seek(self._num_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_entry(self.path)
        self._num_bytes += len(data)
        self._digest.update(data)

    def go_back(self, end: JournalEnd) -> list[dict[str, object]]:
        """Returns the objects up to an earlier end, and goes on from there.

        Raises:
            CheckpointError: when that part of the file is missing or was changed.
        """
        data = b""
        with suppress(FileNotFoundError):
            data = read_file(self.path)[: end.num_bytes]
        digest = hashlib.sha256(data)
        if len(data) != end.num_bytes or digest.hexdigest() != end.sha256:
            raise CheckpointError(f"{self.path} is missing or was changed, so the run cannot be continued")
        self._num_bytes, self._digest = end.num_bytes, digest
        return [_parsed(line, self.path) for line in data.splitlines()]


def _parsed(line: bytes, path: Path) -> dict[str, object]:
    """The JSON object of a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds a line that is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a line that is not a JSON object")
    return value

"""The chit-chat corpus: conversations of real people, from the PyPI package `chitchat-dataset`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.ids import REWRITTEN, plain_id
from fedsim_userdp.data.source import fingerprint_files, require_path
from fedsim_userdp.errors import DataError

GET_IT = "install it with `pip install chitchat-dataset`, or take dataset.json from that package"


class ChitchatCorpus:
    """Chit-chat users: a user is a sender, a record is what that one person typed in one conversation.

    A record joins the sender's messages of the conversation with line breaks. A partner's turns never enter it,
    so that every record has exactly one owner. A sender of messages without text has a blank record.

    Args:
        path: `dataset.json` or a folder holding it; None finds the installed package without importing it.

    Attributes:
        dropped: What the last pass left out: messages without a sender or without text.
    """

    name = "chitchat"
    license = "MIT"
    source = "PyPI chitchat-dataset"

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path
        self.dropped = DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields the records, conversation by conversation, senders in order of their first message."""
        self.dropped.clear()
        file = self._file()
        for conversation, content in _load(file).items():
            try:
                turns = content["messages"]
                messages = [(message.get("sender"), message["text"]) for turn in turns for message in turn]
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: conversation {conversation} is not in the chit-chat form") from error
            yield from self._records_of(messages, f"{file}: conversation {conversation}")

    def fingerprint(self) -> str:
        """Returns a digest of the content of `dataset.json`."""
        return fingerprint_files([self._file()], {"corpus": self.name, "form": 1})

    def _records_of(self, messages: list[tuple[object, object]], at: str) -> Iterator[Record]:
        """Gathers one conversation's messages by sender."""
        typed: dict[str, list[str]] = {}
        for sender, text in messages:
            user_id = plain_id(sender) if isinstance(sender, str) else ""
            if not user_id:
                self.dropped.add("message without a sender", at=at)
                continue
            if user_id != sender:
                self.dropped.add(REWRITTEN, at=at)
            own = typed.setdefault(user_id, [])
            if isinstance(text, str):
                own.append(text)
            else:
                self.dropped.add("message without text", at=at)
        for sender, texts in typed.items():
            yield Record(sender, "\n".join(texts), at=at, is_missing=not texts)

    def _file(self) -> Path:
        """Finds `dataset.json`."""
        path = self.path
        if path is None:
            spec = importlib.util.find_spec("chitchat_dataset")
            if spec is None or not spec.submodule_search_locations:
                raise DataError(f"corpus 'chitchat' is not installed: {GET_IT} and set data.path=PATH")
            path = spec.submodule_search_locations[0]
        found = require_path(path, corpus=self.name, get_it=GET_IT)
        return require_path(found / "dataset.json", corpus=self.name, get_it=GET_IT) if found.is_dir() else found


def _load(file: Path) -> dict[str, dict[str, list[list[dict[str, object]]]]]:
    """Reads the JSON object of conversations."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected one JSON object of conversations, found {type(content).__name__}")
    return content

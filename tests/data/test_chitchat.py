import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim_userdp.data.chitchat import ChitchatCorpus
from fedsim_userdp.errors import DataError

from .sources import message

WriteChat = Callable[[object], ChitchatCorpus]


@pytest.fixture
def corpus(tmp_path: Path) -> WriteChat:
    def write(content: object) -> ChitchatCorpus:
        (tmp_path / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return ChitchatCorpus(tmp_path / "dataset.json")

    return write


def test_a_record_is_what_one_person_typed_in_one_conversation(corpus: WriteChat) -> None:
    turns = [[message("hi", "a"), message("how are you", "a")], [message("fine", "b")], [message("good", "a")]]
    found = list(corpus({"x": {"messages": turns}, "y": {"messages": [[message("again", "a")]]}}).records())
    assert [(r.user_id, r.text) for r in found] == [("a", "hi\nhow are you\ngood"), ("b", "fine"), ("a", "again")]
    assert all(r.owners == () for r in found)


def test_messages_without_sender_or_text_are_counted_with_the_conversation(corpus: WriteChat) -> None:
    turns = [[message("hi", "a"), {"text": "who", "sender": None}, {"text": "who"}, message(None, "a")]]
    chat = corpus({"x": {"messages": turns}})
    assert [r.text for r in chat.records()] == ["hi"]
    assert chat.dropped.counts == {"message without a sender": 2, "message without text": 1}
    assert chat.dropped.first_at["message without text"].endswith("dataset.json: conversation x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dataset\.json: not valid JSON"),
        ("", r"dataset\.json: not valid JSON"),
        ("[" * 100_000, r"dataset\.json: not valid JSON"),
        ([], r"dataset\.json: expected one JSON object of conversations, found list"),
        ({"x": {"turns": []}}, r"dataset\.json: conversation x is not in the chit-chat form"),
        ({"x": {"messages": [["hi"]]}}, r"conversation x is not in the chit-chat form"),
        ({"x": {"messages": [[{"sender": "a"}]]}}, r"conversation x is not in the chit-chat form"),
    ],
)
def test_another_form_is_refused_by_file_and_conversation(corpus: WriteChat, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(corpus(content).records())


def test_the_installed_corpus_is_found_without_being_imported_and_has_its_users() -> None:
    pytest.importorskip("chitchat_dataset", exc_type=ImportError)
    import sys

    sys.modules.pop("chitchat_dataset", None)
    records = list(ChitchatCorpus().records())
    assert "chitchat_dataset" not in sys.modules
    words: dict[str, int] = {}
    for record in records:
        words[record.user_id] = words.get(record.user_id, 0) + len(record.text.split())
    assert len(words) == 1315
    assert sum(1 for record in records if record.text.strip()) == 11_185
    assert sum(1 for num in words.values() if num >= 64) == 905

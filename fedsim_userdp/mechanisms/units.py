"""What a user is, by the settings of a corpus: runs are composed only where it is the same."""

import hashlib
import json
from collections.abc import Mapping

from fedsim_userdp.mechanisms.settings_tree import Tree
from fedsim_userdp.privacy.joint import UNNAMED_IDS

_OF_ONES_OWN = "whoever {target}, with settings of digest {digest}, files a record under"
_LABELS = ("name", "license")  # of a corpus, which decide nothing


def user_in_words(data: Tree) -> str:
    """Returns what a user is, as a noun phrase that is the same where ids and owners of records are told alike.

    Columns of a table and owners are named; files are not: one id is one user, whichever file it is in. Of a class of
    one's own any setting may decide it, so that all are digested.

    Args:
        data: The corpus's settings, `_target_` among them.
    """
    target = str(data["_target_"])
    match target.removeprefix("fedsim_userdp.data."):
        case "table.TableCorpus":
            return f"an id in column {_column(data, 'user_column', 'user_id')} of a table{_owners(data)}"
        case "enron.EnronCorpus":
            others = "" if data.get("owners", "sender") == "sender" else ", or anybody named in a message's head"
            return f"a mailbox of the Enron corpus{others}"
        case "booksum.BooksumCorpus":
            return f"a book of BookSum by column {_column(data, 'user_column', 'bid')}"
        case "chitchat.ChitchatCorpus":
            return "a sender of the chit-chat corpus"
        case "shakespeare.ShakespeareCorpus":
            return "a speaking role of a play of Shakespeare's"
        case "in_memory.InMemoryCorpus":
            if data.get("user_column") is not None:
                return f"an id in column {_column(data, 'user_column', '')} of a table that a program gave"
            return UNNAMED_IDS
    kept = {key: value for key, value in data.items() if key not in _LABELS}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=_plain).encode()).hexdigest()
    return _OF_ONES_OWN.format(target=target, digest=digest[:16])


def _column(data: Tree, key: str, default: str) -> str:
    """The name of a column, quoted; as a number it is the same column."""
    return repr(str(data.get(key, default)))


def _owners(data: Tree) -> str:
    """Whom a record of a table may belong to besides."""
    if data.get("owners_column") is None:
        return ""
    separator = data.get("owners_separator", ";")
    return f", or in column {_column(data, 'owners_column', '')} of owners, separated by {separator!r} in a text"


def _plain(value: object) -> object:
    """What JSON writes of a node of settings."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if hasattr(value, "__iter__") else str(value)

"""From a corpus to a new token store: checking records, tokenising them in batches, cutting windows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.corpus import Corpus, Record
from fedsim_userdp.data.ids import REWRITTEN, RULE, check_seen, count_alike, plain_id
from fedsim_userdp.data.layout import FORMAT
from fedsim_userdp.data.tokens import (
    Tokenizer,
    bos_of,
    count_words,
    cut_windows,
    encode_texts,
    eos_of,
    replace_lone_surrogates,
    tokenizer_fingerprint,
)
from fedsim_userdp.data.typed_text import TypedText
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.errors import DataError, PluginError
from fedsim_userdp.plugins import calling, class_name
from fedsim_userdp.settings import TokenSettings

BATCH_RECORDS = 512
BATCH_CHARS = 1 << 20
_END = object()

log = logging.getLogger(__name__)


class Marks(NamedTuple):
    """Token ids that begin and end a record, none or one each."""

    bos: tuple[int, ...]
    eos: tuple[int, ...]


def store_fingerprint(corpus: Corpus, tokenizer: Tokenizer, settings: TokenSettings) -> str:
    """Returns the hex key of the store that these three make."""
    of_tokens = [tokenizer_fingerprint(tokenizer), bos_of(tokenizer, settings), asdict(settings)]
    key = [FORMAT, RULE, corpus.name, corpus_fingerprint(corpus), *of_tokens]
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def corpus_fingerprint(corpus: Corpus) -> str:
    """Returns the corpus' fingerprint, after checking that it is one.

    Raises:
        DataError: the source is missing.
        PluginError: a corpus that is not this package's raises, or returns no text.
    """
    with calling("data", corpus, "fingerprint()"):
        found = corpus.fingerprint()
    if not isinstance(found, str) or not found:
        raise PluginError(
            f"data={class_name(corpus)}: fingerprint() must return a text that changes with the records, got "
            f"{type(found).__name__}"
        )
    return found


def build_store(corpus: Corpus, tokenizer: Tokenizer, settings: TokenSettings, folder: Path, fingerprint: str) -> Path:
    """Tokenises the corpus into a new store at `folder` and returns it; see `open_store` for the safe way.

    Raises:
        DataError: the corpus is missing or unreadable, or no user is left.
    """
    typed = TypedText(tokenizer)
    marks = Marks(tuple(bos_of(tokenizer, settings)), tuple(eos_of(tokenizer, settings)))
    with StoreWriter(folder, vocab_size=len(tokenizer), min_words=settings.min_words) as writer:
        for batch in _batches(_checked(corpus, writer)):
            _add_batch(writer, batch, typed, settings, marks)
        if alike := count_alike(writer.people):
            log.warning(
                "corpus %s: %d ids are like another but for upper and lower case, full or half width, or spaces "
                "within; each is a person apart: write those of one person alike",
                corpus.name,
                alike,
            )
        try:
            return writer.finish(fingerprint=fingerprint, dropped=corpus.dropped)
        except DataError as error:
            raise DataError(f"corpus {corpus.name!r}: {error}") from error


def _checked(corpus: Corpus, writer: StoreWriter) -> Iterator[Record]:
    """Passes on records that have a user, ids in one form, counting words and what is wrong with each."""
    for number, record in enumerate(_records_of(corpus), start=1):
        at = record.at or f"{corpus.name}, record {number}"
        if record.user_id is not None and not isinstance(record.user_id, str):
            raise DataError(f"{at}: user_id must be a str, got {type(record.user_id).__name__}")
        user_id = plain_id(record.user_id or "")
        if not user_id:
            writer.dropped.add("record without a user id", at=at)
            continue
        if not isinstance(record.text, str):
            raise DataError(f"{at}: text must be a str, got {type(record.text).__name__}")
        check_seen(user_id, at)
        if user_id != record.user_id:
            writer.dropped.add(REWRITTEN, at=at)
        owners = _owners(record.owners, at)
        writer.add_words(user_id, count_words(record.text))
        text = replace_lone_surrogates(record.text) if record.text.strip() else ""
        if not text and not record.is_missing:
            writer.dropped.add("empty record", at=at)
        if text and text != record.text:
            writer.dropped.add("record with code points that UTF-8 cannot hold, replaced", at=at)
        yield Record(user_id, text, owners, at)


def _records_of(corpus: Corpus) -> Iterator[Record]:
    """The corpus' records; one of the user's own may yield anything, and raise anything."""
    with calling("data", corpus, "records()"):
        records = iter(corpus.records())
    while True:
        with calling("data", corpus, "records()"):
            record = next(records, _END)
        if record is _END:
            return
        if not isinstance(record, Record):
            raise PluginError(
                f"data={class_name(corpus)}: records() must yield fedsim_userdp.data.corpus.Record objects, got "
                f"{type(record).__name__}"
            )
        yield record


def _owners(owners: object, at: str) -> tuple[str, ...]:
    """The owners that a corpus names, which must be a tuple of ids; a text would be read by letters."""
    if not isinstance(owners, tuple) or not all(isinstance(owner, str) and plain_id(owner) for owner in owners):
        raise DataError(f"{at}: owners must be a tuple of ids (str, not empty)")
    return tuple(check_seen(plain_id(owner), at, "an owner") for owner in owners)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Groups records for the tokenizer, bounded in number and in characters."""
    batch: list[Record] = []
    chars = 0
    for record in records:
        batch.append(record)
        chars += len(record.text)
        if len(batch) >= BATCH_RECORDS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _add_batch(
    writer: StoreWriter, batch: list[Record], tokenizer: Tokenizer, settings: TokenSettings, marks: Marks
) -> None:
    """Tokenises, cuts and stores a batch of records; a blank one has no windows."""
    with_text = [record for record in batch if record.text]
    encoded = iter(encode_texts(tokenizer, [record.text for record in with_text], settings))
    for record in batch:
        windows = _usable_windows(writer, next(encoded), record.at, settings, marks) if record.text else []
        writer.add_source(record.user_id, windows, record.owners)


def _usable_windows(
    writer: StoreWriter, ids: NDArray[np.int64], at: str, settings: TokenSettings, marks: Marks
) -> list[NDArray[np.int64]]:
    """The windows of one record that are long enough, each with its beginning mark; counts what is cut or too short."""
    bos, eos = np.array(marks.bos, np.int64), np.array(marks.eos, np.int64)
    windows = cut_windows(np.concatenate([ids, eos]), settings.window - len(bos))
    if settings.long_records == "truncate" and len(windows) > 1:
        writer.dropped.add(f"record cut to its first {settings.window} tokens", at=at)
        windows = windows[:1]
    long_enough = [window for window in windows if len(window) >= settings.min_tokens]
    too_short = f"record or window of fewer than {settings.min_tokens} tokens"
    writer.dropped.add(too_short, at=at, num=len(windows) - len(long_enough))
    return [np.concatenate([bos, window]) for window in long_enough]

"""The token store: every user's records as token ids, mapped into memory, built once and opened at once."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fedsim_userdp.cache import default_cache_dir, require_writable
from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.ingestion import build_store, store_fingerprint
from fedsim_userdp.data.layout import (
    META,
    TokenStats,
    check_content,
    content_digest,
    map_array,
    read_meta,
    release_pages,
    sync_folder,
)
from fedsim_userdp.data.tokens import Tokenizer, bos_of, eos_of
from fedsim_userdp.errors import DataError
from fedsim_userdp.settings import TokenSettings

CHECKED_IN_FULL_BYTES = 64 << 20

log = logging.getLogger(__name__)


class TokenStore:
    """Users' records as token ids, read-only. Opening reads no tokens; pickling carries the path only.

    Users are numbered 0 to num_places - 1 in order of first appearance in the corpus. Everybody whom the corpus names
    as a user has a number, also those without a record here, so that nobody's text decides who is there.

    Args:
        path: The store's folder.

    Attributes:
        path: The store's folder.
        fingerprint: Digest of corpus, tokenizer and settings.
        stats: Counts of what is in the store and of what was left out, and why.

    Raises:
        DataError: the folder holds no store, or a corrupt one. Up to 64 MiB the content is compared with its
            checksums on opening; larger stores by `verify` only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        meta = read_meta(self.path)
        self._meta = meta
        self.fingerprint: str = meta.fingerprint
        self.stats: TokenStats = meta.stats
        self._arrays = {name: map_array(self.path, name, meta) for name in meta.arrays}
        if sum(array.nbytes for array in self._arrays.values()) <= CHECKED_IN_FULL_BYTES:
            self.verify()

    @property
    def num_users(self) -> int:
        """Number of users who have a record."""
        return self.stats.num_users

    @property
    def num_places(self) -> int:
        """Number of users whom the corpus names, with or without a record: they are numbered 0 to num_places - 1."""
        return len(self.user_offsets) - 1

    @property
    def has_records(self) -> NDArray[np.bool_]:
        """[num_places] whether each user has a record."""
        return self.records_per_user > 0

    @property
    def content_digest(self) -> str:
        """Hex digest of what is stored: user ids, tokens of each record, and owners where they are declared.

        Two stores have the same one only if whoever trains on them trains on the same. It is made of the checksums
        in `store.json`, so that a large store is not read for it; `verify` holds the content against these. What
        the corpus' files are called, and when they were changed, is no part of it.
        """
        return content_digest(self._meta)

    @property
    def user_offsets(self) -> NDArray[np.int64]:
        """[num_places + 1] number of each user's first record, read-only."""
        return self._arrays["user_offsets"]

    @property
    def record_offsets(self) -> NDArray[np.int64]:
        """[total records + 1] position of each record's first token, read-only."""
        return self._arrays["record_offsets"]

    @property
    def id_hashes(self) -> NDArray[np.uint64]:
        """[num_places] 64-bit hash of each user's id, read-only."""
        return self._arrays["id_hashes"]

    @property
    def records_per_user(self) -> NDArray[np.int64]:
        """[num_places] number of records of each user, >= 0."""
        return np.diff(self.user_offsets)

    @property
    def tokens_per_user(self) -> NDArray[np.int64]:
        """[num_places] number of tokens of each user, >= 0."""
        return np.diff(self.record_offsets[self.user_offsets])

    def user_id(self, user: int) -> str:
        """Returns the id that the corpus gave to `user`."""
        start, end = self._range("id_offsets", user)
        return bytes(self._arrays["id_bytes"][start:end]).decode("utf-8")

    def num_records(self, user: int) -> int:
        """Returns how many records `user` has, possibly 0."""
        start, end = self._range("user_offsets", user)
        return end - start

    def num_tokens(self, user: int) -> int:
        """Returns how many tokens `user` has in all records, possibly 0."""
        start, end = self._range("user_offsets", user)
        return int(self.record_offsets[end] - self.record_offsets[start])

    def records(self, user: int) -> list[NDArray[np.int64]]:
        """Returns the token ids of each record of `user`, in the order of the corpus, as writable copies."""
        start, end = self._range("user_offsets", user)
        if start == end:
            return []
        offsets = np.array(self.record_offsets[start : end + 1])
        tokens = self._arrays["tokens"][offsets[0] : offsets[-1]].astype(np.int64)
        # Else a long run would hold every page of tokens it has ever touched.
        release_pages(self._arrays["tokens"])
        return np.split(tokens, offsets[1:-1] - offsets[0])

    @property
    def declares_owners(self) -> bool:
        """Whether the corpus named further owners of some record."""
        return "owners" in self._arrays

    def owner_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns who owns each source record, as (offsets, owners); see `source_users` for what these are.

        The owners of source record s are `owners[offsets[s]:offsets[s + 1]]`. Indices below `num_places` are users
        of this store; others stand for people under whom no record is filed.

        Raises:
            ValueError: the corpus declared no owners.
        """
        return self._declared("owner_offsets"), self._declared("owners")

    def source_users(self) -> NDArray[np.int64]:
        """Returns the user under whom each source record is filed, shape [stats.num_sources].

        A source record is what the corpus gave, with text or without, in its order. Which there are and who owns them
        depends on nobody's text.

        Raises:
            ValueError: the corpus declared no owners.
        """
        return self._declared("source_users")

    def source_windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for each source record, the number of its first stored record and how many it has (0: blank).

        Raises:
            ValueError: the corpus declared no owners.
        """
        return self._declared("source_records"), self._declared("source_windows")

    def verify(self) -> None:
        """Compares every file's content with its checksum; takes about a second a GiB.

        Raises:
            DataError: a file has changed since it was written.
        """
        check_content(self.path, self._meta)

    def __reduce__(self) -> tuple[type[TokenStore], tuple[str]]:
        return TokenStore, (str(self.path),)

    def _declared(self, name: str) -> NDArray[np.int64]:
        """An array that only stores with declared owners have."""
        if not self.declares_owners:
            raise ValueError(f"{self.path}: the corpus declared no owners, so that there is no {name}")
        array: NDArray[np.int64] = self._arrays[name]
        return array

    def _range(self, offsets: str, index: int) -> tuple[int, int]:
        """Start and end of item `index` in an offsets array."""
        of = self._arrays[offsets]
        if not 0 <= index < len(of) - 1:
            raise IndexError(f"{offsets[:-8]} must be in [0, {len(of) - 1}), got {index}")
        return int(of[index]), int(of[index + 1])


def open_store(
    corpus: Corpus, tokenizer: Tokenizer, settings: TokenSettings, cache_dir: Path | None = None
) -> TokenStore:
    """Returns the corpus as token ids, from the cache or built there first.

    The store is keyed by the fingerprints of corpus and tokenizer and by the settings. It is built in a
    temporary folder and renamed when it is complete and on the disk. A second process waits for the first;
    what a killed process left half-way is removed; a corrupt store is built anew.

    Args:
        corpus: Where records come from.
        tokenizer: A transformers tokenizer.
        settings: Window, shortest record and least words of a user.
        cache_dir: Parent folder of stores; None for the platform's cache folder, see `default_cache_dir`.

    Raises:
        DataError: the corpus is missing or unreadable, or changes while it is read, no user is left, or the cache
            cannot be written.
    """
    eos_of(tokenizer, settings)
    bos_of(tokenizer, settings)
    fingerprint = store_fingerprint(corpus, tokenizer, settings)
    parent = cache_dir if cache_dir is not None else default_cache_dir()
    if store := _found(parent / f"tokens-{fingerprint}"):
        return store
    require_writable(parent)
    with FileLock(parent / f"tokens-{fingerprint}.lock"):
        return _found(parent / f"tokens-{fingerprint}") or _built(corpus, tokenizer, settings, parent, fingerprint)


def _found(folder: Path) -> TokenStore | None:
    """The store in `folder`, or None when there is none that can be used."""
    if not (folder / META).exists():
        return None
    try:
        return TokenStore(folder)
    except (DataError, OSError) as error:
        log.warning("%s; building it anew", error)
        return None


def _built(corpus: Corpus, tokenizer: Tokenizer, settings: TokenSettings, parent: Path, fingerprint: str) -> TokenStore:
    """Builds a store beside its final place and moves it there; call it under the store's lock."""
    folder, building = parent / f"tokens-{fingerprint}", parent / f"building-{fingerprint}"
    try:
        for stale in (building, folder):
            if stale.exists():
                shutil.rmtree(stale)
        build_store(corpus, tokenizer, settings, building, fingerprint)
        if store_fingerprint(corpus, tokenizer, settings) != fingerprint:
            raise DataError(f"corpus {corpus.name!r} changed while it was read: start again once nobody writes to it")
        building.rename(folder)
        sync_folder(parent)
    except OSError as error:
        raise DataError(f"token store {folder} cannot be built: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenStore(folder)

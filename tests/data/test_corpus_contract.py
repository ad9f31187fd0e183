"""What every corpus must do; each runs on a fixture in its true format."""

import importlib.util
import inspect
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.errors import DataError

from .sources import NEED_PYARROW, TEXTS, WRITERS, StoreOf, WriteCorpus

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> WriteCorpus:
    if request.param in NEED_PYARROW:
        pytest.importorskip("pyarrow")
    return WRITERS[request.param]


def by_user(corpus: Corpus) -> dict[str, list[str]]:
    """User -> texts with white space evened out; users named by their last part, in lower case."""
    found = defaultdict(list)
    for record in corpus.records():
        if record.text.strip():
            found[record.user_id.rpartition("/")[2].lower()].append(" ".join(record.text.split()))
    return {user: sorted(texts) for user, texts in found.items()}


def own_users(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leaves out the second speakers that the chit-chat fixture needs."""
    return {user: texts for user, texts in found.items() if not user.startswith("partner of")}


def test_gives_each_user_exactly_their_own_texts(write: WriteCorpus, tmp_path: Path) -> None:
    found = own_users(by_user(write(tmp_path, TEXTS)))
    assert found == {user: sorted(texts) for user, texts in TEXTS.items()}


def test_is_a_corpus_with_name_license_and_source(write: WriteCorpus, tmp_path: Path) -> None:
    corpus = write(tmp_path, TEXTS)
    assert isinstance(corpus, Corpus)
    assert corpus.name
    assert corpus.license
    assert corpus.source


def test_two_passes_give_the_same_records_and_counts(write: WriteCorpus, tmp_path: Path) -> None:
    corpus = write(tmp_path, TEXTS)
    first, counts = list(corpus.records()), dict(corpus.dropped.counts)
    assert list(corpus.records()) == first
    assert corpus.dropped.counts == counts


def test_fingerprint_is_stable_and_changes_with_the_text(write: WriteCorpus, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    corpus = write(tmp_path / "a", TEXTS)
    edited = write(tmp_path / "b", {**TEXTS, "bob": ["Something else altogether."]})
    assert corpus.fingerprint() == corpus.fingerprint()
    assert corpus.fingerprint() != edited.fingerprint()


def test_editing_one_user_leaves_the_others_as_they_were(write: WriteCorpus, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = own_users(by_user(write(tmp_path / "a", TEXTS)))
    after = own_users(by_user(write(tmp_path / "b", {**TEXTS, "cid": [TEXTS["ann"][0]]})))
    assert {user: after[user] for user in ("ann", "bob")} == {user: before[user] for user in ("ann", "bob")}


def test_becomes_a_store_in_which_nothing_is_lost_uncounted(
    write: WriteCorpus, tmp_path: Path, store_of: StoreOf
) -> None:
    corpus = write(tmp_path, TEXTS)
    store = store_of(corpus)
    ids = [store.user_id(user).rpartition("/")[2].lower() for user in range(store.num_users)]
    assert set(TEXTS) <= set(ids)
    words = sum(len(record.text.split()) for record in corpus.records())
    assert store.stats.num_words == words
    assert sum(store.num_tokens(user) for user in range(store.num_users)) == store.stats.num_tokens
    assert store.stats.dropped.items() >= corpus.dropped.counts.items()


@pytest.mark.parametrize("config", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_missing_file_says_where_to_get_the_corpus_and_which_key_to_set(config: str, tmp_path: Path) -> None:
    corpus = instantiate(CONF / "data" / f"{config}.yaml", path=str(tmp_path / "nowhere"))
    for use in (lambda: list(corpus.records()), corpus.fingerprint):
        with pytest.raises(DataError, match=r"nowhere does not exist; .+, then set data\.path=PATH"):
            use()


@pytest.mark.parametrize("config", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_without_a_path_only_the_installed_corpus_can_be_read(config: str) -> None:
    corpus = instantiate(CONF / "data" / f"{config}.yaml")
    if config == "chitchat" and importlib.util.find_spec("chitchat_dataset"):
        assert corpus.fingerprint()
    else:
        with pytest.raises(DataError, match=r"data\.path=PATH"):
            corpus.fingerprint()


@pytest.mark.parametrize("path", sorted((CONF / "data").glob("*.yaml")) + sorted((CONF / "records").glob("*.yaml")))
def test_every_key_of_a_config_is_an_argument_and_has_a_comment(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert set(config) - {"_target_"} <= set(inspect.signature(target(config)).parameters)
    for line in path.read_text().splitlines():
        assert "  # " in line, line


def target(config: dict[str, str]) -> Any:
    module, _, name = config["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def instantiate(config_path: Path, **overrides: str) -> Corpus:
    config = yaml.safe_load(config_path.read_text())
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    return target(config)(**{**arguments, **overrides})

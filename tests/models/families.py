"""Every family of causal language models that transformers builds from a small configuration, put through each engine.

`python -m tests.models.families` prints the table of docs/models.md.
"""

import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.adapters import attach_lora, factors, lora_layers, trainable_state
from fedsim_userdp.privacy.clipping import clip_and_sum, unit_norms
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, why_not_stacked
from fedsim_userdp.training.opacus_step import OpacusStep, summed_gradients
from fedsim_userdp.training.schedule import LearningRate

VOCABULARY = 40
SPECIAL = (7, 5, 6)  # for padding, beginning and end of a text
PARTS = ("all-linear", "attention", "feed-forward")
_ATTENTION = ("attn", "attention", "mixer", "mamba", "conv", "recurrent", "temporal", "self_attention")
# Those that the sizes below make small.
FAMILIES = (
    "apertus", "apertus1p5_text", "arcee", "aria_text", "bailing_hybrid", "bart", "beam", "bert",
    "bert-generation", "big_bird", "biogpt", "bitnet", "blenderbot-small", "bloom", "camembert", "cohere",
    "cohere2", "cohere2_moe", "ctrl", "cwm", "data2vec-text", "deepseek_v3", "diffllama", "doge", "dory",
    "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "falcon", "flex_olmo", "flint",
    "gemma", "gemma2", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe",
    "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "hyperclovax", "internlm3", "iquestcoder", "jais2", "jamba", "jetmoe", "lfm2", "lfm3", "llama",
    "llama4_text", "mamba", "mamba2", "megatron-bert", "minimax", "minimax_m2", "minimax_m3_vl_text",
    "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron",
    "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "rwkv", "seed_oss", "smollm3", "stablelm",
    "starcoder2", "trocr", "vaultgemma", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xlstm",
)  # fmt: skip

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32,
    "bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7,  # none of them what batches are filled with
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
}  # fmt: skip
# What the sizes above do not fit; a size of None is left out.
_ODD: dict[str, dict[str, Any]] = {
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 8},
    "deepseek_v3": {
        "head_dim": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8,
        "q_lora_rank": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2,
    },
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "xlnet": {"max_position_embeddings": None, "d_inner": 24, "d_head": 8, "head_dim": None},
    "mamba2": {"head_dim": 8, "num_heads": 4, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "diffllama": {"num_key_value_heads": 2},
    "xlm": {"n_langs": 1},
}  # fmt: skip
_MIXTURES = ("moe", "qwen3_next", "mixtral", "olmoe", "deepseek", "dots", "gpt_oss", "minimax", "jamba", "ernie4_5_moe")


@dataclass(frozen=True)
class Outcome:
    """What became of a family.

    Attributes:
        own: "stacked", "one by one", or why it is refused.
        opacus: "ok", or why it is refused.
    """

    own: str
    opacus: str


def small_base(model_type: str, **changes: object) -> PreTrainedModel:
    """Returns a random frozen model of the family, loaded as a causal one; raises whatever transformers raises."""
    config_class = {key.model_type: key for key in MODEL_FOR_CAUSAL_LM_MAPPING}[model_type]
    sizes = _SIZES | (_EXPERTS if any(name in model_type for name in _MIXTURES) else {}) | _ODD.get(model_type, {})
    sizes = sizes | changes
    torch.manual_seed(0)
    config = config_class(**{name: size for name, size in sizes.items() if size is not None})
    base = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    embedding = base.get_input_embeddings().weight
    embedding[SPECIAL[0]] = embedding[SPECIAL[1]]  # not zeros: the one for padding often ends a text as well
    return base


def target_names(base: PreTrainedModel, part: str) -> str | tuple[str, ...]:
    """Returns the linear layers of a part of the model, as `lora.target_modules` takes them; () where it has none."""
    if part == "all-linear":
        return part
    head = base.get_output_embeddings()
    names = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and "." in name and not _is_barred(base, name)
    ]
    is_attention = [any(word in name.lower() for word in _ATTENTION) for name in names]
    chosen = [name for name, found in zip(names, is_attention, strict=True) if found == (part == "attention")]
    return tuple(sorted({".".join(name.split(".")[-2:]) for name in chosen}))


def _is_barred(base: PreTrainedModel, name: str) -> bool:
    """Whether PEFT refuses adapters on the layer: fused kernels of state-space models read its weight."""
    return "mamba" in base.config.model_type and name.endswith("out_proj")


def small_model(model_type: str, part: str = "all-linear", **changes: object) -> PeftModel:
    """Returns the family's small model with an adapter that does something; both factors train."""
    base = small_base(model_type, **changes)
    names = target_names(base, part)
    if not names:
        raise ModelError(f"{model_type} has no {part} layers")
    model = attach_lora(base, LoraSettings(rank=2, freeze_a=False, target_modules=names), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            factors(layer)[1].normal_(0, 0.1, generator=generator)
    return model


def users() -> list[Unit]:
    """Returns four users of ragged records, other ones than the program tries a model on.

    Every third token is special, so that such stand at the beginning, inside and at the end of what is read.
    """
    generator = np.random.default_rng(7)
    lengths = ([4], [9, 5], [12, 3], [7, 7])
    units = [Unit(i, [generator.integers(0, VOCABULARY, n) for n in own]) for i, own in enumerate(lengths)]
    for record in (record for unit in units for record in unit.records):
        record[::3] = np.resize(SPECIAL, len(record[::3]))
    return units


def true_gradients(model: nn.Module, records: list[np.ndarray]) -> dict[str, Tensor]:
    """Returns each record's gradient from a plain forward and backward of that record alone, without padding."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for record in records:
        ids = torch.from_numpy(record).unsqueeze(0)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float()[0], ids[0, 1:])
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(named, gradients, strict=True):
            found[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def true_sum(model: nn.Module, units: list[Unit], clip_norm: float) -> Tensor:
    """Returns the sum of the units' clipped mean gradients, computed record by record."""
    means = [{n: g.mean(0) for n, g in true_gradients(model, list(unit.records)).items()} for unit in units]
    return flat(clip_and_sum({n: torch.stack([m[n] for m in means]) for n in means[0]}, clip_norm).total)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Returns the tensors as one vector, in the order of their names."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


def outcome(model_type: str, part: str) -> Outcome:
    """Returns what becomes of the family; raises AssertionError where an engine is wrong without saying so."""
    model = small_model(model_type, part)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = Outcome(_own(model), _opacus(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    return result


def _own(model: PeftModel) -> str:
    """The package's own engine, compared with the truth."""
    try:
        is_stacked = why_not_stacked(model, 16) is None
    except ModelError as error:
        return str(error)
    gradients = StackedGradients(model) if is_stacked else OneByOneGradients(model)
    clip_norm = _biting(model, users())
    local = LocalTraining(max_tokens=40)
    found = flat(clipped_update_sum(gradients, trainable_state(model), users(), local, clip_norm).clipped.total)
    _check(found, true_sum(model, users(), clip_norm))
    return "stacked" if is_stacked else "one by one"


def _opacus(model: PeftModel) -> str:
    """Opacus, compared with the truth."""
    records = [Unit(i, [record]) for i, record in enumerate(r for unit in users() for r in unit.records)]
    clip_norm = _biting(model, records)
    expected = true_sum(model, records, clip_norm)
    settings: dict[str, Any] = {
        "clip_norm": clip_norm,
        "noise_multiplier": 0.0,
        "expected_batch_size": 1.0,
        "max_tokens": 40,
    }
    rate = LearningRate(1e-30, 1, decays=False)
    try:
        step = OpacusStep(model, torch.optim.SGD, rate, window=16, noise=SeededNoise(RunKey.seeded(0)), **settings)
    except ModelError as error:
        return str(error)
    try:
        step(1, records)
        _check(flat(summed_gradients(step)), expected)
    finally:
        step.close()
        model.zero_grad()
    return "ok"


def _biting(model: PeftModel, units: list[Unit]) -> float:
    """A clip norm that clips everybody."""
    return 0.5 * min(float(unit_norms(true_gradients(model, [unit.records[0]])).min()) for unit in units)


def _check(found: Tensor, expected: Tensor) -> None:
    """Raises AssertionError where two sums are further apart than rounding explains, turning a ReLU over included."""
    distance = float((found - expected).norm() / expected.norm())
    assert distance <= 5e-3, f"{distance:.2g} from the records' own gradients"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    for family in sys.argv[1:] or FAMILIES:
        for part in PARTS:
            try:
                print(family, part, outcome(family, part), sep=" | ", flush=True)
            except Exception as error:  # noqa: BLE001 - a table of everything
                print(family, part, f"{type(error).__name__}: {error}", sep=" | ", flush=True)

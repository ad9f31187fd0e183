"""Families of models: each engine computes every record's own gradient, or says in a sentence that it cannot."""

import re

import pytest

from fedsim_userdp.errors import ModelError
from tests.models.families import FAMILIES, PARTS, Outcome, outcome

EXPECTED = {
    ("gpt2", "all-linear"): ("stacked", "ok"),
    ("llama", "all-linear"): ("stacked", "ok"),
    ("falcon", "feed-forward"): ("stacked", "ok"),
    ("opt", "attention"): ("stacked", "ok"),
    ("opt", "feed-forward"): ("one by one", r"layers\.0\.fc1 has 21 gradients for 3 records in Opacus"),
    ("opt", "all-linear"): ("one by one", r"layers\.0\.fc1 has 21 gradients for 3 records in Opacus"),
    ("qwen2_moe", "attention"): ("stacked", "ok"),
    ("qwen2_moe", "feed-forward"): ("one by one", r"mlp\.shared_expert\.gate_proj has 21 gradients for 3 records"),
    ("bert", "attention"): ("is not causal", "is not causal"),
}
# In these, at least attention is stacked, and Opacus is right there.
COMMON = (
    "gpt2", "gpt_neox", "gptj", "opt", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe",
    "phi", "phi3", "gemma", "gemma2", "gemma3_text", "falcon", "bloom", "gpt_bigcode", "gpt_neo", "olmo2", "olmoe",
    "smollm3", "stablelm", "starcoder2", "granite", "cohere", "mpt",
)  # fmt: skip


@pytest.mark.parametrize(("family", "part"), EXPECTED)
def test_a_family_is_computed_right_or_refused_by_the_layers_name(family: str, part: str) -> None:
    own, opacus = EXPECTED[family, part]
    found = outcome(family, part)
    assert re.search(own, found.own)
    assert re.search(opacus, found.opacus)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_computed_right_or_refused_in_one_sentence(family: str, part: str) -> None:
    try:
        found = outcome(family, part)  # compares both engines with plain gradients of single records
    except ModelError as error:  # PEFT adapts no such layer
        found = Outcome(str(error), str(error))
    for said in (found.own, found.opacus):
        assert said in ("stacked", "one by one", "ok") or "\n" not in said
    if family in COMMON and part == "attention":
        assert found == Outcome("stacked", "ok")

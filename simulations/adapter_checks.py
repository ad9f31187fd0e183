"""What `fedsim verify` holds an adapter's folder against: ledger and statement, configuration, results."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedsim_userdp.mechanisms.circumstances import licence_of
from fedsim_userdp.mechanisms.run_files import ADAPTER_CONFIG, CARD, TOKENIZER, WEIGHTS, tokenizer_digest
from fedsim_userdp.mechanisms.settings_tree import is_own_code
from fedsim_userdp.mechanisms.written import labels
from fedsim_userdp.plain_files import read_file
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.report.model_card import AdapterOrigin, model_card
from fedsim_userdp.report.privacy_files import digest_of
from fedsim_userdp.simulations.arguments import foreign_targets
from fedsim_userdp.simulations.checks import difference
from fedsim_userdp.simulations.configured import plain
from fedsim_userdp.simulations.result_checks import result_rows

_FEW = 20  # layers: PEFT shortens a longer list of their names
_EVERY_LAYER = "all-linear"  # PEFT writes down their names
_BUNDLED = "tiny_gpt2"
_HUB_NAME = r"[\w.-]+(/[\w.-]+)?"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?A(?:\.weight)?")
_LABEL = r"[\w./-]+"
_OF_PEFT = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
_NOT_TOLD = ("fan_in_fan_out", "peft_version")  # the base model's layers and the software decide them


def weights_problem(adapter: Path, digest: str | None, source: str = "the ledger") -> str:
    """Returns why an adapter is not the one that a ledger ends with, or a statement names; empty where it is."""
    if digest is None:
        return "the ledger has no closing line"
    path = adapter / WEIGHTS
    if not digest:
        return f"{path} is there, {source} knows of none" if path.exists() else ""
    try:
        found = digest_of(read_file(path))
    except FileNotFoundError:
        return f"{path} is not there"
    return "" if found == digest else f"{path} has sha256 {found}, {source} says {digest}"


def card_problem(
    folder: Path, adapter: Path, run: StatedRun, choices: Mapping[str, str], config: DictConfig | None
) -> str:
    """Returns why a model card is not what statement, result and configuration give; empty where it is."""
    if config is None:
        return "it cannot be compared: the run is not configured"
    try:
        text = read_file(adapter / CARD).decode()
        base = str(_settings(adapter)["base_model_name_or_path"])
        model, data = labels(choices, plain(config))
        licence, tokenizer = licence_of(config.data, own_class(config.data)), tokenizer_digest(adapter)
        row = next(
            row for row in result_rows(folder) if (row.mechanism, row.seed) == (run.statement.mechanism, run.seed)
        )
    except (OSError, ValueError, TypeError, KeyError, StopIteration, ImportError, OmegaConfBaseException) as error:
        return f"it cannot be compared: {error!r}"
    if not all(re.fullmatch(_LABEL, label) for label in (model, data)):
        return f"model={model!r} and data={data!r} are no names of settings"
    is_foreign = bool(foreign_targets(config.model, ()))
    for is_on_hub in (True, False) if is_foreign or base == str(config.model.get("path")) else (False,):
        origin = AdapterOrigin(base, model, data, is_on_hub=is_on_hub, licence=licence, tokenizer=tokenizer)
        if text == model_card(row, run.statement, origin):
            return ""
    return "it is not what statement, results and configuration say"


def settings_problem(adapter: Path, config: DictConfig) -> str:
    """Returns why `adapter_config.json` is not what was configured, or not of the weights; empty where it is."""
    try:
        stored, shapes = _settings(adapter), _shapes(adapter / WEIGHTS)
        told = _configured(config) | {name: value for name, value in _OF_PEFT.items() if name in stored}
        return (
            difference({name: stored[name] for name in told}, told)
            or _other_settings(stored, told)
            or _target_problem(stored["target_modules"], _asked(config), shapes, stored["r"])
            or _base_problem(str(stored["base_model_name_or_path"]), config.model)
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, struct.error, OmegaConfBaseException) as error:
        return f"it cannot be compared: {error!r}"


def spare_problem(adapter: Path) -> str:
    """Returns which files an adapter's folder holds besides its own three and the tokenizer; empty without any."""
    known = (CARD, WEIGHTS, ADAPTER_CONFIG, *TOKENIZER)
    spare = sorted(path.name for path in adapter.iterdir() if path.name not in known)
    return (spare and f"nothing is known of {', '.join(spare)}") or ""


def _settings(adapter: Path) -> dict[str, Any]:
    """What `adapter_config.json` holds."""
    stored = json.loads(read_file(adapter / ADAPTER_CONFIG))
    if not isinstance(stored, dict):
        raise ValueError(f"{ADAPTER_CONFIG} holds no settings")
    return stored


def _configured(config: DictConfig) -> dict[str, object]:
    """Settings of PEFT that were configured, by its names."""
    lora = config.lora
    return {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.use_rslora}


def _asked(config: DictConfig) -> object:
    """The layers that were to be adapted: a text, or a list of names."""
    asked = config.lora.target_modules
    return asked if isinstance(asked, str) else list(asked)


def _shapes(weights: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file, by name, from its header."""
    data = read_file(weights)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _other_settings(stored: Mapping[str, Any], told: Mapping[str, object]) -> str:
    """A setting that nobody asked for."""
    known = (*told, *_NOT_TOLD, "target_modules", "base_model_name_or_path")
    spare = [f"{name}={value}" for name, value in stored.items() if name not in known and value]
    if not isinstance(stored.get("fan_in_fan_out", False), bool):
        spare.append("fan_in_fan_out")
    if not re.fullmatch(r"[\w.+@-]*", str(stored.get("peft_version", ""))):
        spare.append("peft_version")
    return f"{', '.join(spare)} was not configured" if spare else ""


def _target_problem(targets: Any, asked: object, shapes: Mapping[str, list[int]], rank: int) -> str:
    """How the names of adapted layers differ from what was configured, and from the layers that have weights."""
    found = {_FACTOR.fullmatch(name): shape[0] for name, shape in shapes.items()}
    ranks = {match[1]: size for match, size in found.items() if match}
    if wrong := [layer for layer, size in ranks.items() if size != rank]:
        return f"r is {rank}, the weights of {wrong[0]} are of rank {ranks[wrong[0]]}"
    is_pattern = isinstance(asked, str) and asked != _EVERY_LAYER
    if is_pattern or isinstance(targets, str):
        return "" if is_pattern and targets == asked else f"target_modules is {targets!r}, configured is {asked!r}"
    if isinstance(asked, list) and len(asked) < _FEW and sorted(targets) != sorted(asked):
        return f"target_modules is {sorted(targets)}, configured is {sorted(asked)}"
    named = {layer: [name for name in targets if f".{layer}".endswith(f".{name}")] for layer in ranks}
    spare = sorted(set(targets) - {name for names in named.values() for name in names})
    spare += [layer for layer, names in named.items() if not names]
    return f"target_modules and the adapted layers differ in {', '.join(spare)}" if spare else ""


def _base_problem(base: str, model: DictConfig) -> str:
    """Why a base model is not the configured one; empty where it is, or where foreign code chose it."""
    is_right = _is_base(base, model) if not foreign_targets(model, ()) else re.fullmatch(r"[\w./~:\\+-]+", base)
    return "" if is_right else f"base_model_name_or_path is {base!r}, which was not configured"


def _is_base(base: str, model: DictConfig) -> bool:
    """Whether a base model is named as this package's model source names the one that it loads."""
    path = model.get("path")
    if path is None:
        return base == str(_BUNDLED if model.get("package") is None else model.package)
    if not (name := Path(str(path)).name) or name == "..":  # such as `.`, whose name only its machine knows
        return re.fullmatch(r"[\w.@+ -]+", base) is not None
    return base == name or (base == str(path) and re.fullmatch(_HUB_NAME, base) is not None)


def own_class(node: DictConfig) -> type | None:
    """Returns the class that a `_target_` of this package names; None of any other, which is not imported."""
    target = str(node.get("_target_"))
    found: type | None = get_class(target) if is_own_code(target) else None
    return found

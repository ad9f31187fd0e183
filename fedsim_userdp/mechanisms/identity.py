"""What a run's releases depend on, and the keys that derive from it (docs/decisions/0011)."""

import ast
import hashlib
import inspect
import json
import pydoc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.keys import RunKeys, stored_keys
from fedsim_userdp.mechanisms.settings_tree import FREE, Tree, foreign_targets, leaves
from fedsim_userdp.privacy.streams import RunKey

_WITHOUT_EFFECT = FREE | {
    # what is digested by itself, or decides nothing that is released
    *("compare", "data", "evaluation", "hydra", "metrics", "noise", "seed", "split", "tokens", "tuned"),
    *("local.max_tokens", "mechanism.name", "model.device", "model.name", "model.package", "model.path"),
    "model.activation_checkpointing",
    "privacy.num_searched",
}
# What a run's noise and claims rest on, in a checkpoint's origin: `checkpoint.allow_changes` does not reach it.
NEVER_CHANGED = frozenset({"data", "training split", "base model", "public facts"})
# Names in a run's identity, which seeded noise derives from: they stay, wherever a class moves.
_LASTING_NAMES = {
    "fedsim_userdp.mechanisms.user_wise.UserWise": "fedsim_userdp.simulations.mechanisms.UserWise",
    "fedsim_userdp.mechanisms.user_wise_adaptive.UserWiseAdaptive": (
        "fedsim_userdp.simulations.adaptive_clipping.UserWiseAdaptive"
    ),
    "fedsim_userdp.mechanisms.record_level.RecordLevelDP": "fedsim_userdp.simulations.mechanisms.RecordLevelDP",
    "fedsim_userdp.mechanisms.plain.NonPrivate": "fedsim_userdp.simulations.mechanisms.NonPrivate",
    "fedsim_userdp.mechanisms.plain.ZeroShot": "fedsim_userdp.simulations.mechanisms.ZeroShot",
}


def settings_digest(tree: Tree) -> str:
    """Returns a digest of the settings that decide a run's releases; data, split and weights have digests of their own.

    Left out are names, paths, output, engine, threads and evaluation; whatever else the settings hold counts, and so
    does the source of code that is not this package's, and the content of files that the selector's settings name.
    """
    sources = {f"source of {target}": digest for target, digest in _sources(tree).items()}
    return _digest(_kept(tree) | sources | _files_of_selector(tree))


def origin_of(tree: Tree) -> dict[str, str]:
    """Returns what of a checkpoint's origin follows from settings: their digest, and one of each class's source."""
    code = {f"code of {target}": digest for target, digest in _sources(tree).items()}
    return {"settings": _digest(_kept(tree)), **code, **_files_of_selector(tree)}


def _kept(tree: Tree) -> dict[str, object]:
    """The settings that decide a run's releases."""
    kept = {key: value for key, value in tree.items() if key not in _WITHOUT_EFFECT}
    for group in ("mechanism", "model", "local", "privacy", "selection"):
        kept[group] = {k: v for k, v in kept[group].items() if f"{group}.{k}" not in _WITHOUT_EFFECT}
    mechanism = kept["mechanism"]
    mechanism["_target_"] = _LASTING_NAMES.get(mechanism.get("_target_"), mechanism.get("_target_"))
    return kept


def _sources(tree: Tree) -> dict[str, str]:
    """A digest of the source of each class that is not this package's and decides a release."""
    of_releases = {key: value for key, value in tree.items() if key != "metrics"}
    return {target: _source_digest(target) for target in sorted(set(foreign_targets(of_releases)))}


def _files_of_selector(tree: Tree) -> dict[str, str]:
    """A digest of each file that a setting of the selector names, other than `public`, which has one of its own.

    A folder that is named to a class that is not this package's is the files in it.
    """
    selector = tree["selection"]
    paths = {key: Path(text).expanduser() for key, text in _texts(selector) if key not in _WITHOUT_EFFECT}
    found = {f"file {key}": path for key, path in paths.items() if _is(Path.is_file, path)}
    if foreign_targets(selector):
        for key, path in paths.items():
            if path.name and _is(Path.is_dir, path):  # not of an empty text, which is the working directory
                inside = (file for file in sorted(path.rglob("*")) if file.is_file())
                found |= {f"file {key}/{file.relative_to(path).as_posix()}": file for file in inside}
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in found.items()}


def _texts(selector: object) -> Iterator[tuple[str, str]]:
    """Yields the texts in a selector's settings by dotted key; those of lists by their number."""
    for key, value in leaves(selector, "selection"):
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Sequence):
            yield from ((f"{key}.{number}", one) for number, one in enumerate(value) if isinstance(one, str))


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path is that of a file or folder; a text that can be none is not."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def _digest(settings: Mapping[str, object]) -> str:
    """A digest of settings, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _source_digest(target: str) -> str:
    """A digest of the code behind a `_target_`: its whole package, or its file and those it imports from beside it.

    Empty where there is no such code, as in a notebook.  What code reads when it runs is not looked at.
    """
    try:
        module = inspect.getmodule(pydoc.locate(target))
    except (pydoc.ErrorDuringImport, TypeError, ValueError):
        return ""  # whoever instantiates it says what is wrong
    if module is None or getattr(module, "__file__", None) is None:
        return ""
    package = sys.modules.get(module.__name__.partition(".")[0], module)
    if getattr(package, "__path__", None) and package.__file__:
        root = Path(package.__file__).parent
        files = {path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    else:
        root = Path(str(module.__file__)).parent
        files = _with_imported(Path(str(module.__file__)), set())
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(repr((file.relative_to(root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest())).encode())
    return found.hexdigest()


def _with_imported(file: Path, seen: set[Path]) -> set[Path]:
    """`seen` with a file and all that it imports, one from the other, out of its own folder."""
    if file in seen:
        return seen
    seen.add(file)
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # a compiled module
        return seen
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        base = node.module or ""
        names |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)}
    for name in names - {""}:
        place = file.parent.joinpath(*name.split("."))
        beside = [*place.parent.glob(f"{place.name}.*"), place / "__init__.py"] if place.parent.is_dir() else []
        for path in beside:
            if path.is_file() and path.suffix in (".py", ".so", ".pyd"):
                _with_imported(path, seen)
    return seen


def identity_of(settings: str, fingerprint: Mapping[str, str]) -> str:
    """Returns what a run's releases depend on, as text."""
    return json.dumps({**fingerprint, "settings": settings}, sort_keys=True)


def keys_of_run(noise_source: str, seed: int, identity: str, path: Path, *, is_resumed: bool) -> RunKeys:
    """Returns the run's keys: those of the run that is gone on with, or new ones.

    Args:
        noise_source: "seeded" or "os".
        seed: the run's seed.
        identity: what its releases depend on, as text.
        path: the folder of its checkpoints.
        is_resumed: whether a run is gone on with.

    Raises:
        ConfigError: when `noise_source` is unknown.
        CheckpointError: when the stored keys are damaged, or of another noise source.
    """
    if noise_source not in ("seeded", "os"):
        raise ConfigError(f"noise.source={noise_source} is unknown; expected seeded or os")
    seeded = RunKey.seeded(seed, identity) if noise_source == "seeded" else None
    stored = stored_keys(path, seeded) if is_resumed else None
    return stored or RunKeys.of(seeded or RunKey.drawn())

"""The `fedsim` command: dispatches to the studies and turns a wrong setting into one sentence and exit code 2."""

import importlib
import logging
import os
import sys
import warnings

COMMANDS = {
    "compare": ("simulations.compare", "train with every mechanism at one user-level budget and compare"),
    "run": ("simulations.run", "train with one mechanism"),
    "pretrain": ("simulations.pretrain", "make the bundled tiny model again from public text"),
}

# Said by a dependency about its own code on every run; nothing that a user could act on.
_HARMLESS_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",
    "Full backward hook is firing when gradients are computed with respect to module outputs",
)

HELP = """Fine-tuning language models under user-level differential privacy: which mechanism, how set, what guaranteed.

Usage: fedsim COMMAND [KEY=VALUE ...]

Commands:
{commands}

Examples:
  fedsim compare
  fedsim compare privacy.epsilon=2 mechanism.records_per_user=8 output_dir=my-run
  fedsim run mechanism=group_privacy engine=in_process seed=1
  fedsim run --multirun privacy.epsilon=1,3,8

`fedsim COMMAND --help` lists a command's settings, `--cfg job` prints its whole configuration.
"""


def main() -> None:
    """Runs a command; the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())))
        return
    if arguments[0] == "--version":
        from fedsim_userdp import __version__

        print(f"fedsim {__version__}")
        return
    if arguments[0] not in COMMANDS:
        _stop(f"there is no command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}")
    sys.exit(run_command(arguments[0], arguments[1:]))


def run_command(name: str, arguments: list[str]) -> int:
    """Returns the exit code of a command: 0, or 2 with one sentence on stderr when a setting is wrong."""
    _prepare_process()
    sys.argv = [f"fedsim {name}", *arguments]
    sys.path.append(os.getcwd())  # so that `_target_` finds classes in the user's own files
    from simulations.refusals import REFUSALS, sentence

    try:
        importlib.import_module(COMMANDS[name][0]).main()
    except BrokenPipeError:
        return 0
    except REFUSALS as error:
        _stop(sentence(error))
    except KeyboardInterrupt:
        print("fedsim: stopped", file=sys.stderr)
        return 130
    return 0


def _prepare_process() -> None:
    """Usage reports off, libraries quiet, errors of the configuration raised rather than printed."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for name in ("flwr", "transformers", "opacus"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _stop(message: str) -> None:
    """Prints one sentence and leaves with exit code 2."""
    print(f"fedsim: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

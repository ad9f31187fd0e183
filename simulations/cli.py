"""The `fedsim` command: dispatches to the studies and turns a wrong setting into one sentence and exit code 2."""

import contextlib
import importlib
import os
import sys
from typing import TextIO, cast

from fedsim_userdp.printable import printable
from fedsim_userdp.simulations.process import prepare_process
from fedsim_userdp.simulations.signals import exit_code, stopping_in_order
from fedsim_userdp.simulations.streams import watched_streams

COMMANDS = {
    "compare": ("fedsim_userdp.simulations.compare", "train with every mechanism at one user-level budget and compare"),
    "run": ("fedsim_userdp.simulations.run", "train with one mechanism"),
    "study": (
        "fedsim_userdp.simulations.study",
        "run a grid of mechanisms, budgets, settings and seeds, with intervals",
    ),
    "data": (
        "fedsim_userdp.simulations.data",
        "describe a corpus before any training: users, records, tokens, what k keeps",
    ),
    "budget": ("fedsim_userdp.simulations.budget", "plan the noise for a user-level budget, without data or model"),
    "verify": (
        "fedsim_userdp.simulations.verify",
        "recompute all that a run folder claims, from its ledgers and its configuration",
    ),
    "audit": (
        "fedsim_userdp.simulations.audit",
        "try to refute the claimed epsilon with canary users planted in real runs",
    ),
    "benchmark": ("fedsim_userdp.simulations.benchmark", "measure speed and memory as ratios, and what a round costs"),
    "pretrain": ("fedsim_userdp.simulations.pretrain", "make the bundled tiny model again from public text"),
}

TRACEBACK = "FEDSIM_TRACEBACK"  # a variable of the environment: shows unexpected errors as Python does
PLAIN = frozenset({"verify"})  # take folders, not settings
CONFIG_NAMES = {"data": "describe"}  # of commands whose file of settings has another name
SWEPT = frozenset({"run", "compare"})

HELP = """Fine-tuning language models under user-level differential privacy: which mechanism, how set, what guaranteed.

Usage: fedsim COMMAND [KEY=VALUE ...]

Commands:
{commands}

Examples:
  fedsim compare
  fedsim compare privacy.epsilon=2 mechanism.records_per_user=8 output_dir=my-run
  fedsim run mechanism=group_privacy seed=1
  fedsim run --multirun privacy.epsilon=1,3,8
  fedsim verify my-run

`fedsim COMMAND --help` explains a command's settings, `fedsim COMMAND --help WORD` those with WORD in their names;
`--cfg job` prints its whole configuration.
"""


def main() -> None:
    """Runs a command; the console script."""
    with watched_streams(), stopping_in_order():
        dispatch(sys.argv[1:])


def dispatch(arguments: list[str]) -> None:
    """Runs the command that the arguments name."""
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
    """Returns the exit code of a command: 0; 2 with one sentence on stderr for a wrong setting; 3 if a run diverged.

    Whatever else the machine or a library raises is one sentence too, and exit code 1; with $FEDSIM_TRACEBACK set it is
    raised as it is.
    """
    try:
        return _run(name, arguments)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as stop:
        by = f" by {stop}" if str(stop) else ""
        further = "; a run that had begun goes on with resume=PATH" if name in SWEPT or name == "study" else ""
        print(f"fedsim: stopped{by}{further}", file=sys.stderr)
        return exit_code(stop)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"fedsim: {_unexpected(error)}", file=sys.stderr)
        return 1


def _run(name: str, arguments: list[str]) -> int:
    """See `run_command`."""
    prepare_process()
    from fedsim_userdp.simulations import command_help, own_files
    from fedsim_userdp.simulations.arguments import complete_arguments
    from fedsim_userdp.simulations.left_overs import nothing_left
    from fedsim_userdp.simulations.sentences import MENDABLE, folder_refused, sentence

    failed: list[str] = []
    completed = arguments

    try:
        own_files.working_folder()
        if name not in PLAIN and command_help.is_asked(arguments):
            print(command_help.help_text(name, CONFIG_NAMES.get(name, name), arguments))
            return 0
        completed = arguments if name in PLAIN else complete_arguments(name, arguments)
        own_files.find_named_classes(completed)
        with contextlib.ExitStack() as kept:
            kept.enter_context(contextlib.nullcontext() if name in PLAIN else nothing_left(completed))
            if name in SWEPT and {"-m", "--multirun"} & set(completed):
                from fedsim_userdp.simulations import jobs, sweep_list

                kept.enter_context(sweep_list.kept_where_jobs_begin(jobs.check_jobs(name, completed)))
                failed = jobs.FAILED
                failed.clear()
            sys.argv = [f"fedsim {name}", *completed]
            with contextlib.redirect_stderr(cast(TextIO, _WithoutPreamble(sys.stderr))):
                importlib.import_module(COMMANDS[name][0]).main()
    except MENDABLE as error:
        if failed:
            _said_of_diverged(jobs.DIVERGED)
            its = "its" if len(failed) == 1 else "their"
            _stop(f"{jobs.in_words(len(failed))} did not run to {its} end: {', '.join(failed)}")
        _stop(folder_refused(error, completed) or sentence(error))
    study = sys.modules.get("fedsim_userdp.simulations.study")
    if study is not None and study.FAILED:
        return 3
    module = sys.modules.get("fedsim_userdp.simulations.jobs")
    return 0 if module is None else _said_of_diverged(module.DIVERGED)


def _unexpected(error: Exception) -> str:
    """The sentence for an error that no part of this program expects."""
    if isinstance(error, MemoryError):
        return "there was not enough memory: make some free, or take less of it (local.max_tokens)"
    from fedsim_userdp.simulations.sentences import sentence

    said = sentence(error)
    kind = type(error).__name__
    return f"stopped by {said if said == kind else f'{kind}: {said}'} (with {TRACEBACK}=1 it says where)"


def _said_of_diverged(runs: list[str]) -> int:
    """The exit code of a command: 3, with a sentence, where training diverged."""
    if not runs:
        return 0
    print(f"fedsim: training diverged: {printable(', '.join(runs))}; try a smaller learning rate", file=sys.stderr)
    runs.clear()
    return 3


class _WithoutPreamble:
    """A stream that drops the line with which Hydra precedes an error that we say in our own words."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes everything but that line."""
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)


def _stop(message: str) -> None:
    """Prints one sentence and leaves with exit code 2."""
    print(f"fedsim: {printable(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

"""A command that is asked to stop says so in one line and ends with the exit code of the signal."""

import signal
import subprocess
import sys

import pytest

# Sends itself a signal where a command would be at work; `{before}` comes first.
PROGRAM = """
import signal, sys
{before}
from fedsim_userdp.simulations import cli
cli.prepare_process = lambda: signal.raise_signal({number})
sys.argv[:] = ["fedsim", "{command}"]
cli.main()
"""


def stopped(number: int, command: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(number=int(number), command=command, before=before)
    return subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_in_one_line_and_its_exit_code(number: signal.Signals) -> None:
    done = stopped(number, "run")
    assert done.returncode == 128 + number
    assert done.stderr == f"fedsim: stopped by {number.name}; a run that had begun goes on with resume=PATH\n"


def test_of_ctrl_c_nothing_but_that_is_said() -> None:
    done = stopped(signal.SIGINT, "budget")
    assert done.returncode == 130
    assert done.stderr == "fedsim: stopped\n"


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    done = stopped(signal.SIGHUP, "verify", "signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert done.returncode != 128 + signal.SIGHUP
    assert "stopped" not in done.stderr

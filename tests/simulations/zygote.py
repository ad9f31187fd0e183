"""Processes that run `fedsim` without the seconds that imports take: forked from one that has them behind it.

Each child is a process of its own and is killed as such, by SIGKILL.  Run as a program, this is the parent.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = ("write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, what it printed, and how long it took."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


class Zygote:
    """Starts children of a running parent."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._folder, self._number = process, folder, 0

    def run(
        self,
        *arguments: str,
        after: float | None = None,
        write: int | None = None,
        torn: bool = False,
        cwd: Path | None = None,
    ) -> Ended:
        """Runs `fedsim` with the arguments; returns when the child has ended.

        Args:
            arguments: the command and its settings.
            after: seconds until the child is killed; None not to.
            write: number of the change of a file, from 1, at which it is killed; None not to.
            torn: whether half of what that write was writing is on the disk.
            cwd: the folder that the child starts in; None for that of the repository.
        """
        (ended,) = self._run_all([self._order(arguments, cwd, after=after, write=write, torn=torn)])
        return ended

    def run_together(self, *commands: Sequence[str], cwd: Path) -> list[Ended]:
        """Runs `fedsim` with each of these arguments, all started at the same moment in one folder, to their ends."""
        return self._run_all([self._order(arguments, cwd) for arguments in commands])

    def _order(self, arguments: Sequence[str], cwd: Path | None, **kill: float | int | None) -> dict[str, Any]:
        """What a child is told."""
        self._number += 1
        out, err = (str(self._folder / f"{self._number}.{kind}") for kind in ("out", "err"))
        where = None if cwd is None else str(cwd)
        told = {"arguments": arguments, "cwd": where, "out": out, "err": err}
        return {"after": None, "write": None, "torn": False, **kill, **told}

    def _run_all(self, orders: list[dict[str, Any]]) -> list[Ended]:
        """Starts children at once and waits for all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        answers = json.loads(self._process.stdout.readline())
        return [
            Ended(code, Path(order["out"]).read_text(), Path(order["err"]).read_text(), seconds)
            for order, (code, seconds) in zip(orders, answers, strict=True)
        ]


@contextmanager
def zygote(folder: Path, **environment: str) -> Iterator[Zygote]:
    """Starts a parent for the duration of the block; its children's output goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.simulations.zygote"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Zygote(process, folder)
        assert process.stdin is not None
        process.stdin.close()


def kill_at_write(number: int, torn: bool) -> None:
    """Kills this process at its change number `number` of a file, before it or in the middle of it."""
    count = 0

    def counted(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if torn and kind == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                if torn and kind == "fsync" and not os.path.isdir(f"/proc/self/fd/{args[0]}"):
                    size = os.fstat(args[0]).st_size
                    os.truncate(os.readlink(f"/proc/self/fd/{args[0]}"), size - min(size, 20))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return write

    for kind in WRITES:
        setattr(os, kind, counted(kind, getattr(os, kind)))


def _be_a_child(order: dict[str, Any]) -> None:
    """Runs the command in this process, which ends with it."""
    from fedsim_userdp.simulations.cli import dispatch

    for descriptor, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if order["cwd"] is not None:
        os.chdir(order["cwd"])
    if order["write"] is not None:
        kill_at_write(order["write"], order["torn"])
    code = 0
    try:
        dispatch(order["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 - told as Python itself would tell it
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int, after: float | None) -> int:
    """The exit code of a child, which is killed after so many seconds if it still runs."""
    deadline = None if after is None else time.monotonic() + after
    while deadline is not None:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Imports what a run needs, then forks a child for each line of the input."""
    import torch

    torch.set_num_threads(1)
    from fedsim_userdp.simulations.process import prepare_process

    prepare_process()
    import fedsim_userdp.mechanisms.compare
    import fedsim_userdp.mechanisms.folder
    import fedsim_userdp.report.plots
    import fedsim_userdp.simulations.compare
    import fedsim_userdp.simulations.run
    import fedsim_userdp.simulations.verify
    import fedsim_userdp.training.opacus_step  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        orders, start = json.loads(line), time.monotonic()
        children = [_started(order) for order in orders]
        ended = [
            (_wait(child, order["after"]), time.monotonic() - start)
            for child, order in zip(children, orders, strict=True)
        ]
        print(json.dumps(ended), flush=True)


def _started(order: dict[str, Any]) -> int:
    """The process id of a new child."""
    if (child := os.fork()) == 0:
        _be_a_child(order)
    return child


if __name__ == "__main__":
    main()

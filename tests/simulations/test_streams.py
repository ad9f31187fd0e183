"""What the command does when nobody reads it, or when there is no room for what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTING = [["--help"], ["--version"], ["budget", "output_dir=planned"]]


def fedsim(
    arguments: list[str], cwd: Path, *, out: int = subprocess.PIPE, err: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, timeout=120, stdout=out, stderr=err)


def unread_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_reader_that_stops_ends_the_command_in_silence_with_the_code_of_sigpipe(
    arguments: list[str], tmp_path: Path
) -> None:
    writer = unread_pipe()
    done = fedsim(arguments, tmp_path, out=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_of_both_streams_that_stops_ends_a_refusal_in_silence(tmp_path: Path) -> None:
    writer = unread_pipe()
    assert fedsim(["nothing"], tmp_path, out=writer, err=writer).returncode == 141
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", PRINTING)
def test_no_room_for_what_is_printed_is_said_in_one_sentence_that_names_the_stream(
    arguments: list[str], tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = fedsim(arguments, tmp_path, out=full.fileno())
    assert done.returncode == 2
    assert done.stderr.startswith("fedsim: standard output: No space left on device")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_refusal_that_finds_no_room_has_its_code_all_the_same(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert fedsim(["nothing"], tmp_path, err=full.fileno()).returncode == 2


def test_streams_that_were_closed_before_the_start_are_no_error(tmp_path: Path) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f'"{sys.executable}" -m fedsim_userdp.simulations.cli --help {closed}'
        assert subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True).returncode == 0

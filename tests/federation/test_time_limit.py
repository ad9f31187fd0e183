import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100)


def test_a_process_that_hangs_in_native_code_ends_at_its_time_limit() -> None:
    done = run(
        "import re\n"
        "from fedsim_userdp.federation.time_limit import ending_process_after\n"
        "with ending_process_after(0.5):\n"
        "    re.match(r'(a+)+$', 'a' * 60 + 'b')\n"  # hours, holding the interpreter's lock
    )
    assert done.returncode == 1
    assert b"Timeout" in done.stderr


def test_a_process_within_its_time_limit_is_left_alone() -> None:
    done = run(
        "import time\n"
        "from fedsim_userdp.federation.time_limit import ending_process_after\n"
        "with ending_process_after(0.5): pass\n"
        "time.sleep(1.0)\n"
    )
    assert done.returncode == 0

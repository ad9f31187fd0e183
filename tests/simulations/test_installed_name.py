"""What is installed has one name, so that files of the working folder are never taken for parts of the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("simulations", "strategies", "conf")


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_command_works_in_a_folder_that_has_the_names_of_its_parts(tmp_path: Path, is_folder: bool) -> None:
    for name in FOLDERS:
        module = tmp_path / name / "__init__.py" if is_folder else tmp_path / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text("raise RuntimeError('taken for a part of the package')\n")
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "run", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "_target_: fedsim_userdp.mechanisms.user_wise.UserWise" in done.stdout


@pytest.mark.slow
def test_a_wheel_has_one_name_and_all_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fedsim_userdp"}
    for folder, kind in zip(FOLDERS, ("*.py", "*.py", "*.yaml"), strict=True):
        expected = {f"fedsim_userdp/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / folder).rglob(kind)}
        assert expected <= set(names)

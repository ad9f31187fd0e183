"""Help and docs/settings.md say what the comments of the settings' files say."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.simulations import explanations, settings_page
from fedsim_userdp.simulations.cli import COMMANDS, CONFIG_NAMES, PLAIN, run_command
from fedsim_userdp.simulations.command_help import help_text
from fedsim_userdp.simulations.explanations import ROOT, read_settings

COMMENTED = """# What the file is for,
# in two lines.
#
#   fedsim run such=example
defaults:
  - base   # no setting

plain: a#b          # after a value
quoted: "a # b"     # goes on
                    # in the next line
section:            # of a section
  # not beside a key
  flow: {one: 1, two: [2, 3]}   # of all in the line
  list:             # of a list
    - a             # not of the list
    - b
  bare: null

hydra:
  run: x            # no setting
"""


def test_a_comment_belongs_to_the_first_key_of_its_line_and_goes_on_below_itself(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(COMMENTED)
    file = read_settings(tmp_path / "file.yaml")
    assert file.about == "What the file is for, in two lines."
    assert file.settings == {
        "plain": "a#b", "quoted": '"a # b"', "section.flow.one": "1", "section.flow.two": "[2, 3]",
        "section.list": "[a, b]", "section.bare": "null",
    }  # fmt: skip
    assert file.explained == {
        "plain": "after a value", "quoted": "goes on in the next line", "section": "of a section",
        "section.flow": "of all in the line", "section.list": "of a list",
    }  # fmt: skip


@pytest.mark.parametrize("path", [path for path in sorted(ROOT.rglob("*.yaml")) if path.parent.name != "experiment"])
def test_every_setting_is_explained_beside_it_or_with_its_section(path: Path) -> None:
    file = read_settings(path)
    assert file.about
    for key in file.settings:
        parts = key.split(".")
        above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        assert key == "_target_" or any(one in file.explained for one in above), f"{path}: {key}"


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - PLAIN))
def test_help_of_a_command_explains_its_own_settings(command: str) -> None:
    text = help_text(command, CONFIG_NAMES.get(command, command), ["--help"])
    shown = " ".join(text.split())
    file = read_settings(ROOT / f"{CONFIG_NAMES.get(command, command)}.yaml")
    assert text.startswith(f"fedsim {command}: ")
    for key, meaning in file.explained.items():
        assert f"{key}=" in shown or f"{key}.*" in shown
        assert " ".join(meaning.split()) in shown


def test_help_with_a_word_shows_names_that_have_it_and_choices_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("run", ["--help", "Privacy", "selection", "selection=fixed_size"]) == 0
    shown = capsys.readouterr().out
    assert "privacy.epsilon=8.0               user-level target; inf trains without noise" in shown
    assert "mechanism=group_privacy           record-level DP-SGD (Opacus)" in shown
    assert "selection=poisson                 every user independently" in shown
    assert "selection.cohort_size=64          users in a round" in shown
    assert "lora" not in shown


def test_help_explains_the_settings_of_the_files_that_are_chosen() -> None:
    shown = help_text("run", "run", ["mechanism=non_private", "privacy.epsilon=3", "-h", "mechanism", "epsilon"])
    assert "privacy.epsilon=3 " in shown
    assert "mechanism.clip_norm" not in shown


def test_a_word_that_no_name_has_is_refused_with_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"has epslon in its name; did you mean privacy\.epsilon\?"):
        help_text("run", "run", ["--help", "epslon"])
    with pytest.raises(ConfigError, match=r"there is no setting privacy\.epslon"):
        help_text("run", "run", ["--help", "privacy.epslon=3"])


def test_help_loads_nothing_that_trains_or_draws() -> None:
    code = (
        "import sys; from fedsim_userdp.simulations.cli import run_command; run_command('run', ['--help']);"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib', 'flwr', 'ray'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_the_page_of_settings_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), (
        "python -m fedsim_userdp.simulations.settings_page writes it anew"
    )


def test_the_common_settings_are_those_that_their_classes_define() -> None:
    written = (settings_page.ROOT / "base.yaml").read_text(encoding="utf-8")
    assert settings_page.base_file(written) == written, "python -m fedsim_userdp.simulations.settings_page writes it"
    changed = written.replace("epsilon: 8.0 ", "epsilon: 9.0 ").replace("# users that are only scored", "# stale")
    assert changed != written
    assert settings_page.base_file(changed) == written


def test_every_choice_is_on_the_page_of_settings() -> None:
    for group, offered in explanations.choices().items():
        for name in offered:
            assert f"### `{group}={name}`\n" in settings_page.page()

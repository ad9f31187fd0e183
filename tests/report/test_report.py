import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fedsim_userdp.report.audit_progress import StepProgress
from fedsim_userdp.report.files import write_json, write_results, write_rounds, write_text
from fedsim_userdp.report.plots import plot_comparison
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.report.table import TABLE_WIDTH, footnote, result_console, results_table


def row(mechanism: str, epsilon: float | None, rounds: int = 5) -> ResultRow:
    return ResultRow(
        mechanism=mechanism, unit="user", epsilon=epsilon, delta=None if epsilon is None else 1e-4, guarantee="",
        noise_multiplier=0.6, clip_norm=0.3, records_per_user=4, rounds=rounds, sampling_prob=0.1, learning_rate=0.01,
        seed=0, perplexity=123.4, train_tokens=1000, seconds=2.0,
    )  # fmt: skip


def record(mechanism: str, round: int, perplexity: float | None) -> RoundRecord:
    return RoundRecord(mechanism, 0, round, 0.5, perplexity, 4.2, 10, 3, 0, 0, 100, 1.0)


ROWS = [row("user_wise", 7.99), row("record_level", None), row("zero_shot", None, rounds=0)]
ROUNDS = [record("user_wise", 0, 300.0), record("user_wise", 1, None), record("user_wise", 2, 123.4)]


def test_table_fits_and_says_where_there_is_no_user_level_guarantee() -> None:
    console = Console(width=TABLE_WIDTH, record=True)
    longest = replace(row("example_level_tight", 7.99), unit="record", epsilon_tight=46.78, seconds=1234.0)
    console.print(results_table([*ROWS, longest]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH
    assert "7.99" in next(line for line in lines if "user_wise" in line)
    assert "none" in next(line for line in lines if "record_level" in line)
    assert "…" not in console.export_text()


def test_a_narrow_table_leaves_out_columns_and_no_digits() -> None:
    for width in (80, 60):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(results_table([row("example_level_tight", 7.994)], width))
        text = console.export_text()
        assert "…" not in text
        assert "example_level_tight" in text
        assert "perplexity" in text


def shown(rows: list[ResultRow], width: int = TABLE_WIDTH) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(results_table(rows, width))
    return console.export_text()


def test_the_untrained_perplexity_stands_beside_the_trained_one_where_it_has_no_row_of_its_own() -> None:
    trained = replace(row("user_wise", 7.99), untrained_perplexity=181.26)
    assert "untrained" in shown([trained])
    assert "181.3" in shown([trained])
    assert "untrained" in footnote([trained])
    for rows in ([trained, replace(ROWS[2], untrained_perplexity=181.26)], [ROWS[0]]):
        assert "untrained" not in shown(rows)
        assert "untrained" not in footnote(rows)
    longest = replace(trained, mechanism="example_level_tight", epsilon_tight=46.78, unit="record", seconds=1234.0)
    assert "181.3" in shown([longest], 80)
    assert max(map(len, shown([longest], 80).splitlines())) <= 80


def test_a_model_that_training_made_worse_is_said_to_be() -> None:
    worse = replace(row("user_wise", 7.99), untrained_perplexity=100.0, seed=2)
    assert "user_wise, seed 2: the trained model is worse than the untrained one (perplexity 123.4" in footnote([worse])
    assert "100.0 before" in footnote([worse])
    for before, after in ((123.4, 123.42), (None, 123.4), (100.0, None), (130.0, 123.4)):
        assert "worse" not in footnote([replace(worse, untrained_perplexity=before, perplexity=after)])


NAME, LITERALLY = "k[red]x[/b]:smile:\x1b[31m", "k[red]x[/b]:smile:\\x1b[31m"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("progress_class", [RunProgress, StepProgress])
def test_names_are_printed_as_they_are(
    progress_class: type[RunProgress] | type[StepProgress], is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    console = result_console()
    file = console.file = io.StringIO()
    console._force_terminal = is_terminal
    with progress_class(console) as progress:
        progress.start(NAME, 1, "users")
        progress.warn(f"{NAME} warns")
        progress.advance(1, 10, 0.5, None) if isinstance(progress, RunProgress) else progress.advance(1)
    console.print(results_table([replace(ROWS[0], mechanism=NAME)], 200))
    console.print(footnote([replace(ROWS[0], mechanism=NAME, untrained_perplexity=1.0)]), markup=False)
    assert "k[red]x[/b]😄" not in file.getvalue()
    assert file.getvalue().count(LITERALLY) >= 4


def test_results_can_be_read_back(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read[0]["epsilon"] == 7.99
    assert read[1]["epsilon"] is None
    assert (tmp_path / "results.csv").read_text().splitlines()[0].startswith("mechanism,unit,epsilon,delta")


def test_diagnostics_lie_in_a_folder_that_says_not_private(tmp_path: Path) -> None:
    write_rounds(tmp_path, ROUNDS)
    with (tmp_path / "not_private" / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all("without noise" in row["not_private"] for row in rows)


def test_result_files_say_inside_what_in_them_is_not_private_and_whose_the_perplexity_is(tmp_path: Path) -> None:
    write_results(tmp_path, [*ROWS, replace(ROWS[0], evaluated_on="validation")])
    stored = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for rows in (stored, table):
        assert [row["evaluated_on"] for row in rows] == ["heldout"] * 3 + ["validation"]
        for row in rows:
            mentioned, reason = row["not_private"].split(": ")
            assert set(mentioned.split(", ")) <= row.keys() | {"metrics"}  # in the CSV a column each, metric_NAME
            assert "perplexity" in mentioned
            assert reason == "from users' data without noise"


def test_the_footnote_names_the_users_a_large_delta_and_an_unmet_target() -> None:
    plain = footnote(ROWS)
    assert "on held-out users" in plain
    assert "published whole" not in plain
    assert "asked for" not in plain
    assert "on validation users" in footnote([replace(row, evaluated_on="validation") for row in ROWS])
    assert "one user in 8 could be published whole" in footnote([replace(ROWS[0], delta=0.118)])
    unmet = footnote([replace(ROWS[0], epsilon=838.9, target_epsilon=1e6)])
    assert "epsilon 1e+06 was asked for and 838.9 holds" in unmet
    assert "asked for" not in footnote([replace(ROWS[0], target_epsilon=8.0)])


def test_a_plot_is_drawn_for_any_mix_of_mechanisms(tmp_path: Path) -> None:
    plot_comparison(tmp_path / "a.png", ROWS, ROUNDS)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "NOT private" in Image.open(tmp_path / "a.png").info["Description"]


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"a": math.nan})
    assert json.loads(target.read_text()) == {"a": 1}
    write_text(target, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_progress_is_plain_lines_where_output_is_no_terminal() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    with RunProgress(console) as progress:
        progress.start("user_wise", 2, "users")
        progress.advance(1, 10, 0.5, None)
        progress.advance(2, 10, 0.7, 120.0)
    text = console.export_text()
    assert "user_wise: round 2/2  eps 0.70" in text
    assert "users/s" in text
    assert "\x1b" not in text

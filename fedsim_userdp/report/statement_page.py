"""Privacy statements as Markdown: a table and a few sentences for each run, and one closing joint section."""

from collections.abc import Sequence

from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.joint import JointStatement, StatedRun
from fedsim_userdp.privacy.ownership import COVERED
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.records import people

_UNITS = {"user": "one user: all records filed under them", "record": "one record; NO user", "nobody": "nobody"}
_MOST_GROUPS = 20  # in a table
_DECLARED = "one person: all records that name them as an owner"
_SOURCES = {
    "os": "operating system, with a secret key for the cohorts",
    "seeded": "a seed: a simulation, see below",
}


def statement_table(statement: PrivacyStatement) -> str:
    """Returns the facts of a statement as a Markdown table of two columns, short cells only."""
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {_cell(text)} |" for name, text in _facts(statement))])


def statement_text(statement: PrivacyStatement) -> str:
    """Returns a statement as Markdown without a heading: the table, sentences, and what is assumed as a list."""
    parts = [statement_table(statement), " ".join([statement.claim, *statement.remarks, statement.noise])]
    if len(statement.groups) > 1 and statement.epsilon_by_group:
        parts.append(_groups_table(statement))
    if statement.assumptions:
        parts.append(f"Taken as public: {'; '.join(statement.public)}.")
        numbered = (f"{number}. {text}" for number, text in enumerate(statement.assumptions, start=1))
        parts.append("\n".join(["The claim assumes that", "", *numbered]))
    return "\n\n".join(parts)


def _groups_table(statement: PrivacyStatement) -> str:
    """Epsilon of each group of users, the costliest first."""
    rows = sorted(zip(statement.epsilon_by_group, statement.groups, strict=True), reverse=True)
    lines = [f"| {_cell(who)} | {_number(epsilon)} |" for epsilon, who in rows[:_MOST_GROUPS]]
    if len(rows) > _MOST_GROUPS:
        lines.append(f"| {len(rows) - _MOST_GROUPS} other groups | at most {_number(rows[_MOST_GROUPS][0])} |")
    return "\n".join(["| users | epsilon |", "|---|---|", *lines])


def joint_text(joint: JointStatement) -> str:
    """Returns the joint statement of several runs as Markdown, with its heading."""
    value = "none" if joint.together.epsilon is None else rounded_up(joint.together.epsilon)
    facts = [("Claims for users", str(len(joint.claims)))]
    if joint.delta is not None:
        facts += [("Joint epsilon", value), ("Delta", rounded_up(joint.delta, 3))]
        if joint.with_search is not None:
            facts.append(("With the declared search", _number(joint.with_search.epsilon)))
        if joint.with_record_level is not None:
            facts.append(("With the record-level runs", _number(joint.with_record_level.epsilon)))
        if joint.without_noise:
            facts.append(("With the runs without noise", "none"))
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts)])
    return f"## All of it together\n\n{table}\n\n{' '.join(joint.sentences())}"


def page(runs: Sequence[StatedRun], digest: str, sweep: str | None = None, unfinished: Sequence[str] = ()) -> str:
    """Returns `PRIVACY.md` of a run folder.

    Args:
        runs: The runs in it, at least one.
        digest: sha256 of `privacy.json`, in hexadecimal.
        sweep: Path from the folder to that of the sweep whose job it is; None outside of one.
        unfinished: Runs of the folder that have not ended.
    """
    sections = [f"## {run.name}\n\n{statement_text(run.statement)}" for run in runs]
    closing = joint_text(JointStatement(tuple(runs)))
    if unfinished:
        closing += f" NOT counted, since they had not ended: {'; '.join(unfinished)}."
    if sweep is not None:
        closing += f" This is one job of a sweep: what all of its jobs promise together is in `{sweep}/PRIVACY.md`."
    return "\n\n".join(["# What is guaranteed", *sections, closing, _footer(digest)]) + "\n"


def sweep_page(joint: JointStatement, unfinished: Sequence[str], digest: str) -> str:
    """Returns `PRIVACY.md` of a sweep's folder.

    Args:
        joint: Of the runs of all jobs.
        unfinished: Folders of jobs that have released something and have no statement, or are gone.
        digest: sha256 of `privacy.json`, in hexadecimal.
    """
    listed = "\n".join(["| run | level | epsilon | delta |", "|---|---|---|---|", *map(_row, joint.runs)])
    parts = ["# What the jobs of this sweep promise together", listed, joint_text(joint)]
    if unfinished:
        parts.append(
            f"NOT counted, since they were still running, were stopped or are gone: jobs {', '.join(unfinished)}."
        )
    parts.append("What each job promises for itself, and under which assumptions: `PRIVACY.md` in its folder.")
    return "\n\n".join([*parts, _footer(digest)]) + "\n"


def _facts(statement: PrivacyStatement) -> list[tuple[str, str]]:
    """The rows of the table."""
    if statement.accountant is None or statement.delta is None:
        return [
            ("Unit", _UNITS["nobody"]),
            ("Epsilon", "none"),
            ("Population", f"{statement.num_users} users"),
            ("Noise", "none"),
            ("Not covered", "everything"),
        ]
    is_of_users = statement.level == "user"
    unit = _DECLARED if is_of_users and statement.ownership == "declared" else _UNITS[statement.level]
    facts = [
        ("Unit", unit),
        ("A user is", statement.users),
        ("Epsilon", f"{_number(statement.epsilon)}{'' if is_of_users else ' for one record; none for users'}"),
        ("Delta", rounded_up(statement.delta, 3)),
        ("Neighbours", str(statement.adjacency)),
        ("Accountant", f"{statement.accountant}{_others(statement)}"),
        ("Sampling", str(statement.selection)),
        ("Population", f"{statement.num_users} {'people' if unit == _DECLARED else 'users'}"),
        ("Records", statement.records),
        ("Releases", f"{statement.rounds}{f', of which {statement.num_lost} lost' if statement.num_lost else ''}"),
        ("Clip norm", "none" if statement.clip_norm is None else f"{statement.clip_norm:.4g}"),
        ("Noise", f"Gaussian, {_noise(statement)} times the clip norm on each sum{_together(statement)}"),
        ("Noise source", _SOURCES[statement.noise_source]),
    ]
    if is_of_users:
        facts.append(("Whose a record is", COVERED[statement.ownership]))
    facts.append(("Settings", _search(statement)))
    facts.append(("Perplexity", f"of {people(statement.evaluated_on)}, from their text without noise: not private"))
    facts.append(("Assumes", f"1 to {len(statement.assumptions)} below"))
    facts.append(("Not covered", "; ".join(statement.not_private)))
    return facts


def _others(statement: PrivacyStatement) -> str:
    """Epsilon by the other accountants of users."""
    if statement.level != "user" or len(statement.epsilon_by_accountant) < 2:
        return ""
    return f" ({statement.epsilons_in_words()})"


def _noise(statement: PrivacyStatement) -> str:
    """The noise multiplier of the sum of updates."""
    return "various" if statement.update_noise_multiplier is None else f"{statement.update_noise_multiplier:.4g}"


def _together(statement: PrivacyStatement) -> str:
    """The noise multiplier of all of a round, where that is less."""
    if statement.noise_multiplier == statement.update_noise_multiplier:
        return ""
    return f" of updates; {statement.noise_multiplier:.4g} for all of a round together"


def _search(statement: PrivacyStatement) -> str:
    """How the settings were chosen, in short; what it costs is said elsewhere."""
    if statement.num_searched == 1:
        return "no search on these users was declared" if "declared" in statement.search else statement.search
    return f"chosen among {statement.num_searched} runs on these users: NOT in epsilon"


def _row(run: StatedRun) -> str:
    """A run in the list of a sweep."""
    statement = run.statement
    delta = "-" if statement.delta is None else rounded_up(statement.delta, 3)
    epsilon = _number(statement.epsilon) if statement.level == "user" else "none"
    return f"| {_cell(run.name)} | {statement.level} | {epsilon} | {delta} |"


def _number(epsilon: float | None) -> str:
    """An epsilon in a cell."""
    return "none" if epsilon is None else rounded_up(epsilon)


def _cell(text: str) -> str:
    """Text that ends no cell and begins no line."""
    return " ".join(text.replace("|", "\\|").split())


def _footer(digest: str) -> str:
    """How the page is checked."""
    return f"`fedsim verify FOLDER` recomputes this page. sha256 of `privacy.json`: `{digest}`"

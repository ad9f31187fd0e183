import pytest

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.email_text import body_of, own_text, parse_email

HEADERS = "To: a@b.c\nSubject: x\n"


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
def test_text_of_others_is_cut_and_own_text_stays(foreign, own):
    assert own_text(f"{own}\n\n{foreign}" if own else foreign) == own


def test_answers_between_quoted_lines_stay():
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
def test_own_text_that_looks_a_little_like_a_quote_stays(body):
    assert own_text(body) == body


def test_line_endings_and_white_space_at_the_ends_are_evened_out():
    assert own_text("\r\none  \r\ntwo\rthree\n\n") == "one\ntwo\nthree"


def body(raw, dropped=None):
    return body_of(parse_email(raw), dropped if dropped is not None else DropCounts(), "here")


def test_bytes_that_do_not_fit_the_declared_charset_are_read_as_latin1_and_counted():
    dropped = DropCounts()
    raw = b"Content-Type: text/plain; charset=us-ascii\n\ncaf\xe9"
    assert body(raw, dropped) == "café"
    assert dropped.counts == {"text that is not UTF-8, read as latin-1": 1}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Content-Transfer-Encoding: quoted-printable\n\nlong =\nline =3D 1", "long line = 1"),
        (b"Content-Type: text/plain; charset=no-such\n\nplain", "plain"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n\ncaf\xe9", "café"),
        (b"no header at all", "no header at all"),
        (b"", ""),
        (b"Content-Type: text/html\n\n<p>x</p>", ""),
        (b"Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: text/plain\n\nfirst\n--B--", "first"),
    ],
)
def test_plain_text_is_found_however_it_is_encoded(raw, text):
    assert body(raw) == text

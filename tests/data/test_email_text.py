import pytest

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.email_text import ATTACHED, FURTHER, HTML_ONLY, UNREADABLE, body_of


def body(raw: bytes, dropped: DropCounts | None = None) -> str | None:
    return body_of(raw, dropped if dropped is not None else DropCounts(), "here")


def test_bytes_that_do_not_fit_the_declared_charset_are_read_as_latin1_and_counted() -> None:
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
        (b"Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: text/plain\n\nfirst\n--B--", "first"),
    ],
)
def test_plain_text_is_found_however_it_is_encoded(raw: bytes, text: str) -> None:
    assert body(raw) == text


MIXED = b"Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: text/plain\n\nmine\n--B\n%b\n--B--\n"
HTML = b"Content-Type: text/html\n\n<p>x</p>"


@pytest.mark.parametrize(
    "part",
    [
        b"Content-Type: message/rfc822\n\nFrom: a@b.c\n\ntheirs",
        b"Content-Type: text/plain; name=notes.txt\n\ntheirs",
        b"Content-Type: text/plain\nContent-Disposition: attachment\n\ntheirs",
        b"Content-Type: text/plain\nContent-Disposition: inline; filename=notes.txt\n\ntheirs",
        b"Content-Type: text/csv\n\n1,2",
        b"Content-Type: image/png\nContent-Transfer-Encoding: base64\n\nAAAA",
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_attached_messages_and_files_are_not_the_owners_text_and_are_counted(part: bytes, is_first: bool) -> None:
    dropped = DropCounts()
    raw = MIXED % part
    if is_first:
        raw = raw.replace(b"Content-Type: text/plain\n\nmine\n--B\n" + part, part + b"\n--B\n\nmine")
    assert (body(raw, dropped) or "").strip() == "mine"
    assert dropped.counts == {ATTACHED: 1}


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: message/rfc822\n\nFrom: a@b.c\n\ntheirs",
        b"Content-Type: text/plain; name=x.txt\n\ntheirs",
        b"Content-Type: multipart/digest; boundary=B\n\n--B\n\nFrom: a@b.c\n\ntheirs\n--B--",
    ],
)
def test_mail_that_is_an_attachment_only_has_no_text_of_its_owner(raw: bytes) -> None:
    dropped = DropCounts()
    assert body(raw, dropped) == ""
    assert dropped.counts == {ATTACHED: 1}


@pytest.mark.parametrize("part", [b"\nmore", b"Content-Type: text/plain\nContent-Disposition: inline\n\nmore"])
def test_further_text_parts_are_counted(part: bytes) -> None:
    dropped = DropCounts()
    assert body(MIXED % part, dropped) == "mine"
    assert dropped.counts == {FURTHER: 1}


@pytest.mark.parametrize(
    "raw", [HTML, (MIXED % HTML).replace(b"mine", b" "), (MIXED % HTML).replace(b"plain", b"html")]
)
def test_mail_in_html_only_is_told_from_mail_without_text(raw: bytes) -> None:
    dropped = DropCounts()
    assert body(raw, dropped) is None
    assert dropped.counts == {HTML_ONLY: 1}


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed\n\n--B\n\nwhose?\n--B--",
        b"Content-Type: multipart/mixed; boundary=A\n\n--B\n\nwhose?\n--B--",
        b"Content-Transfer-Encoding: base64\n\nAAAAA",
        b"Content-Type: text/plain" + b";" * 1_000_000 + b"\n\nx",
        b"Content-Type: multipart/mixed" + b";" * 1_000_000 + b"\n\nx",
        b'Content-Disposition: inline; filename="' + b"a;" * 500_000 + b'"\n\nx',
        b"".join(b"Content-Type: multipart/mixed; boundary=B%d\n\n--B%d\n" % (n, n) for n in range(9000)),
        b"Content-Type: text/plain; charset*0=a; charset*=b; charset*1*=c\n\nx",
    ],
)
def test_mail_that_cannot_be_read_is_counted_and_stops_nothing(raw: bytes) -> None:
    dropped = DropCounts()
    assert body(raw, dropped) is None
    assert dropped.counts == {UNREADABLE: 1}


@pytest.mark.parametrize(
    "charset",
    [
        b"undefined", b"x\x00y", b"idna", b"punycode", b"unicode_escape", b"rot13", b"base64", b"../x", b"a" * 5000,
        b'"', b"''", b"utf-8; charset=latin-1", b"\xff", b"mbcs", b"utf-8''x", b"=?utf-8?q?x?=",
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", [b"plain \\u0041", b""])
def test_whatever_stands_for_a_charset_the_text_is_read(charset: bytes, text: bytes) -> None:
    dropped = DropCounts()
    assert body(b"Content-Type: text/plain; charset=" + charset + b"\n\n" + text, dropped) == text.decode()
    assert dropped.counts == {}

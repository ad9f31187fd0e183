import base64
import time

import pytest

from fedsim_userdp.data.addresses import addresses_of, people_of
from fedsim_userdp.data.email_text import parse_head
from fedsim_userdp.data.ids import unseen_in


def read(to: str, header: str = "To") -> tuple[list[str], bool]:
    people = people_of(parse_head(f"From: me@x.com\n{header}: {to}\nSubject: s\n\nbody".encode()))
    assert people.found[0] == "me@x.com"
    return list(people.found[1:]), people.is_complete


def test_addresses_are_in_lower_case_and_each_once() -> None:
    message = parse_head(b'To: "A, B" <A@x.com>,\n b@x.com\nCc: a@X.com\n\n')
    assert addresses_of(message, "To", "Cc", "Bcc") == ["a@x.com", "b@x.com"]


def test_an_address_in_two_spellings_is_one_address() -> None:
    composed, decomposed = "jos=C3=A9=40x.com", "JOSE=CC=81=40x.com=C2=A0"
    message = parse_head(f"To: =?utf-8?q?{composed}?=, =?utf-8?q?{decomposed}?=\n\n".encode())
    assert addresses_of(message, "To") == ["jos\xe9@x.com"]


@pytest.mark.parametrize(
    ("to", "found"),
    [
        ("", []),
        ("a@x.com, b@x.com", ["a@x.com", "b@x.com"]),
        ("a@x.com,\n\tb@x.com", ["a@x.com", "b@x.com"]),
        ("a@x.com; b@x.com,", ["a@x.com", "b@x.com"]),
        ("Ann <a@x.com>, b@x.com", ["a@x.com", "b@x.com"]),
        ('"Smith, John" <j@x.com>, k@x.com', ["j@x.com", "k@x.com"]),
        ("Smith, John </O=ENRON/OU=NA/CN=RECIPIENTS/CN=JSMITH>, b@x.com",
         ["/o=enron/ou=na/cn=recipients/cn=jsmith", "b@x.com"]),
        ("'bob@x.com', 'todd'.'dela'@enron.com", ["bob@x.com", "todd'.'dela'@enron.com"]),
        ("O'Brien <pat.o'brien@x.com>", ["pat.o'brien@x.com"]),
        ("Team: a@x.com, b@x.com;", ["a@x.com", "b@x.com"]),
        ("(a comment, with b@x.com) a@x.com", ["b@x.com", "a@x.com"]),
        ("=?utf-8?q?bob=40x=2Ecom?= <c@x.com>", ["c@x.com", "bob@x.com"]),
        ('"john smith"@x.com', ["john.smith@x.com"]),
        ("mailto:bob@x.com", ["bob@x.com"]),
        ("bob @ x.com", ["bob@x.com"]),
        ("a@x.com b@x.com", ["a@x.com", "b@x.com"]),
        ('"broken <a@x.com>, b@x.com', ["a@x.com", "b@x.com"]),
    ],
)  # fmt: skip
def test_every_address_of_a_header_is_found(to: str, found: list[str]) -> None:
    assert read(to) == (found, True)


@pytest.mark.parametrize(
    ("to", "found"),
    [
        ("a@x.com, broken <b@x.com, c@x.com", ["a@x.com", "b@x.com", "c@x.com"]),
        ("a@b@c.com, d@x.com", ["a@b@c.com", "d@x.com"]),
        ("<@hop.com:bob@x.com>", ["@hop.com", "bob@x.com"]),
        ("bob@, c@x.com", ["bob@", "c@x.com"]),
        ("@", ["@"]),
        ("bob, carol <carol@x.com>", ["carol@x.com"]),
        ("Smith, bob, John </O=E/CN=J>", ["/o=e/cn=j"]),
        ("c@x.com, All Employees", ["c@x.com"]),
        ("bob c@x.com", ["c@x.com"]),
        ("<c@x.com> bob", ["c@x.com"]),
        ("Bob <bob>, c@x.com", ["c@x.com"]),
        ("undisclosed-recipients:;", []),
        ("host!bob", []),
        ("=?no-such-charset?q?bob?= <c@x.com>", ["c@x.com"]),
        ("a@x.com\nc@x.com", ["a@x.com"]),
    ],
)
def test_no_address_is_lost_by_a_malformed_one_and_the_message_is_not_taken_for_complete(
    to: str, found: list[str]
) -> None:
    assert read(to) == (found, False)


@pytest.mark.parametrize("header", ["To", "CC", "bcc", "Resent-To", "Apparently-To", "Sender"])
def test_all_headers_that_name_people_are_read(header: str) -> None:
    assert read("a@x.com", header) == (["a@x.com"], True)


@pytest.mark.parametrize(
    ("headers", "is_complete"),
    [
        ("To: a@x.com\nX-To: Ann", True),
        ("X-To: \nX-cc:", True),
        ("X-To: Smith, John </O=X/CN=J>", False),
        ("To: a@x.com\nX-To: Ann\nX-cc: Bob", False),
        ("To : a@x.com", False),
        (": a@x.com", False),
    ],
)
def test_people_named_without_an_address_are_not_taken_for_nobody(headers: str, is_complete: bool) -> None:
    assert people_of(parse_head(f"From: me@x.com\n{headers}\n\nbody".encode())).is_complete is is_complete


def test_what_cannot_be_seen_in_an_address_makes_nobody_else() -> None:
    for hidden, seen in (("d\u200be@x\xad.com", "de@x.com"), ("</CN=JOHN\xa0SMITH>", "/cn=john smith")):
        found, _ = read(f"=?utf-8?b?{base64.b64encode(hidden.encode()).decode()}?=")
        assert seen in found
        assert not any(unseen_in(name) for name in found)


def test_the_text_of_a_message_changes_nothing_about_its_people() -> None:
    head = b"From: me@x.com\nTo: a@x.com\nContent-Type: multipart/mixed; boundary=b\n\n"
    bodies = [
        b"",
        b"To: eve@x.com\n\nhello",
        b"--b\n\nhello",
        b"--b\nTo: eve@x.com\n: broken\n\nx\n--b--\n",
        b"\xff" * 9,
    ]
    people = [people_of(parse_head(head + body)) for body in bodies]
    assert people == [people[0]] * len(bodies)
    assert (people[0].found, people[0].is_complete) == (("me@x.com", "a@x.com"), True)


@pytest.mark.parametrize(
    "raw",
    [
        b"From: me@x.com\nSubject: hi\r\r\nTo: boss@x.com\n\nhello",
        b"From: me@x.com\nSubject: hi\r\rTo: boss@x.com\n\nhello",
        b"From: me@x.com\rTo: boss@x.com\r\rhello",
        b"From: me@x.com\r\r\nTo: boss@x.com\r\r\n\r\r\nhello",
    ],
)
def test_a_carriage_return_within_the_head_hides_nobody(raw: bytes) -> None:
    assert not people_of(parse_head(raw)).is_complete


@pytest.mark.parametrize("text", [b"a\r\rTo: eve@x.com", b"a\r\nb\r\n", b"\r"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_carriage_returns_that_end_lines_or_stand_in_the_text_do_no_harm(text: bytes, end: bytes) -> None:
    people = people_of(parse_head(end.join([b"From: me@x.com", b"To: a@x.com", b"", text])))
    assert (people.found, people.is_complete) == (("me@x.com", "a@x.com"), True)


@pytest.mark.parametrize("filler", ['"', "<", "(", "a@x.com ", "/O=", ",", "=?", '\\"', "'", "@", "a ", ">", "_/="])
def test_reading_a_header_takes_time_in_proportion_to_its_length(filler: str) -> None:
    start = time.process_time()
    read(filler * (200_000 // len(filler)))
    assert time.process_time() - start < 5

"""What a service says to its manager: sd_notify(3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.supervisor.datagram import BadDatagram, Word, is_name, parse


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"READY=1", Word(is_ready=True)),
        (b"READY=1\n", Word(is_ready=True)),
        (b"READY=1\nSTATUS=serving\n", Word(is_ready=True, status="serving")),
        (b"READY=0", Word()),
        (b"STOPPING=1\nSTATUS=", Word(is_stopping=True, status="")),
        (b"WATCHDOG=1", Word(is_alive=True)),
        (b"WATCHDOG=trigger", Word()),
        (b"STATUS=a=b\x1b[1m", Word(status="a=b?[1m")),
        (b"EXTEND_TIMEOUT_USEC=1500000", Word(extend=1.5)),
        (b"EXTEND_TIMEOUT_USEC=99999999999999999999", Word(extend=limits.WORKER_START_MOST)),
        (b"FDSTORE=1\nFDNAME=fuse", Word(stores=True, name="fuse")),
        (b"FDSTORE=1", Word(stores=True, name="stored")),
        (b"FDSTOREREMOVE=1\nFDNAME=fuse", Word(removes=True, name="fuse")),
        (b"X_OTHER=1\nMAINPID=1\nBARRIER=1\nno assignment", Word()),
        (b"", Word()),
    ],
)
def test_words(data, word):
    assert parse(data) == word


@pytest.mark.parametrize(
    "data",
    [
        b"READY=1\xff",
        b"READY=1\n" * limits.NOTIFY_SIZE,
        b"EXTEND_TIMEOUT_USEC=-1",
        b"EXTEND_TIMEOUT_USEC=",
        b"EXTEND_TIMEOUT_USEC=" + "\u0663".encode(),
        b"EXTEND_TIMEOUT_USEC=" + b"9" * 4000,
        b"FDSTOREREMOVE=1",
        b"FDSTORE=1\nFDNAME=",
        b"FDSTORE=1\nFDNAME=a:b",
        b"FDSTORE=1\nFDNAME=a b",
        b"FDSTORE=1\nFDNAME=a\x00b",
        "FDSTORE=1\nFDNAME=ä".encode(),
        b"FDSTORE=1\nFDNAME=" + b"a" * 256,
    ],
)
def test_what_is_no_word(data):
    with pytest.raises(BadDatagram):
        parse(data)


def test_names_as_long_as_they_may_be():
    assert is_name("a" * 255)
    assert not is_name("a" * 256)
    assert not is_name("a\n")


ASSIGNMENT = st.sampled_from(
    ["READY=1", "STOPPING=1", "WATCHDOG=1", "FDSTORE=1", "FDSTOREREMOVE=1", "FDNAME=", "STATUS="]
)


@given(
    st.one_of(
        st.binary(max_size=5000),
        st.lists(ASSIGNMENT | st.text(max_size=40), max_size=10).map("\n".join),
    )
)
def test_whatever_comes_is_a_word_or_refused(data):
    data = data if isinstance(data, bytes) else data.encode(errors="replace")
    try:
        word = parse(data)
    except BadDatagram:
        return
    assert is_name(word.name), "it can be passed on in LISTEN_FDNAMES"
    assert word.status is None or word.status.isprintable(), "it can be shown and passed on"
    assert word.extend is None or 0 <= word.extend <= limits.WORKER_START_MOST


@given(
    st.booleans(),
    st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    st.none() | st.integers(0, int(limits.WORKER_START_MOST) * 10**6),
    st.from_regex(r"[!-9;-~]{1,255}", fullmatch=True),
    st.randoms(use_true_random=False),
)
def test_what_is_said_is_understood_in_any_order(is_ready, status, extend, name, random):
    said = [f"FDNAME={name}", "FDSTORE=1"]
    said += ["READY=1"] * is_ready
    said += [] if status is None else [f"STATUS={status}"]
    said += [] if extend is None else [f"EXTEND_TIMEOUT_USEC={extend}"]
    random.shuffle(said)
    word = parse("\n".join(said).encode())
    assert word == Word(
        is_ready=is_ready,
        stores=True,
        name=name,
        status=status,
        extend=None if extend is None else extend / 1e6,
    )

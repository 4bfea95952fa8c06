"""The JSON of tables of contents, entry by entry."""

import json
import random

import pytest

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded, Unsupported
from imgvol.layers.lazy.entries import iter_entries


def entries(text: str | bytes) -> list[dict]:
    return list(iter_entries(text.encode() if isinstance(text, str) else text))


def test_entries_come_in_order_whatever_the_order_of_keys_and_the_space():
    wanted = [{"name": "a"}, {"name": "b", "xattrs": {"x": "eA=="}}]
    listed = json.dumps(wanted, indent="\t")
    assert entries(f'{{"version":1,"entries":{listed}}}') == wanted
    assert entries(f' {{ "entries" : {listed} ,\r\n "version" : 1 }} \n') == wanted
    more = f'{{"tarSplitDigest":"x","entries":{listed},"other":[{{"entries":1}}],"version":1}}'
    assert entries(more) == wanted


def test_no_entries_are_entries():
    assert entries('{"version":1,"entries":[]}') == []


def test_long_tables_are_read_through_windows():
    noise = random.Random(5)
    wanted = [
        {"name": "né\u2028\U0001f600" * noise.randrange(1, 40), "size": noise.randrange(1 << 60)}
        for _ in range(6000)
    ]
    wanted.insert(300, {"name": "x" * 700_000})
    for ascii_only in (True, False):
        data = json.dumps({"version": 1, "entries": wanted}, ensure_ascii=ascii_only).encode()
        assert len(data) > 4 * 256 * limits.KIB
        assert entries(data) == wanted


def test_a_number_at_the_edge_of_a_window_is_whole():
    for size in range(256 * 1024 - 40, 256 * 1024 + 5):
        head = '{"version":1'
        data = head + " " * (size - len(head) - 20) + ',"other":12345678901234567890,"entries":[]}'
        assert entries(data) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "1",
        "{}",
        '{"version":1}',
        '{"entries":[]}',
        '{"version":1,"entries":{}}',
        '{"version":1,"entries":null}',
        '{"version":1,"entries":[1]}',
        '{"version":1,"entries":[{},]}',
        '{"version":1,"entries":[{} {}]}',
        '{"version":1,"entries":[{}',
        '{"version":1,"entries":[{}]',
        '{"version":1,"entries":[]}x',
        '{"version":1,"entries":[]}{}',
        '{"version":1,"version":1,"entries":[]}',
        '{"version":1,"entries":[],"Entries":[]}',
        '{"version":1,"entries":[{"a":1,"a":2}]}',
        '{"version":1,"entries":[{"a":NaN}]}',
        '{"version":1,"entries":[{"a":-Infinity}]}',
        '{"version":1,"entries":[{"a":1e999}]}',
        '{"version":1,"entries":[{"a":"\\ud800"}]}',
        '{"version":1,"entries":[{"\\udc00":1}]}',
        '{"version":1,"entries":[{"a":"\n"}]}',
        '{"version":1,"entries":[{"a":' + "9" * 5000 + "}]}",
        "{1:1}",
        '{"version" 1}',
        b'{"version":1,"entries":[{"a":"\xff"}]}',
        b'{"version":1,"entries":[{"a":"\xed\xa0\x80"}]}',
        b'\xef\xbb\xbf{"version":1,"entries":[]}',
        b'{"version":1,"entries":[]}\xe2',
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidDocument):
        entries(text)


@pytest.mark.parametrize("version", ["2", "0", "true", '"1"', "null", "1.5"])
def test_other_versions_are_unsupported(version):
    with pytest.raises(Unsupported):
        entries(f'{{"version":{version},"entries":[]}}')


@pytest.mark.parametrize("bomb", ["[", '{"a":'])
def test_nesting_ends_with_an_error_of_ours(bomb):
    with pytest.raises((LimitExceeded, InvalidDocument)):
        entries('{"version":1,"entries":[{"a":' + bomb * 200_000)


def test_an_entry_that_never_ends_is_not_collected(peak_memory):
    data = b'{"version":1,"entries":[{"a":"' + bytes([0x20]) * (40 * limits.MIB)
    with peak_memory() as peak, pytest.raises(LimitExceeded, match="entry"):
        entries(data)
    assert peak.bytes < 20 * limits.MIB


def test_memory_does_not_grow_with_the_table(peak_memory):
    item = json.dumps({"name": "x" * 50, "type": "reg", "digest": "y" * 71}).encode()
    data = b'{"version":1,"entries":[' + b",".join([item] * 100_000) + b"]}"
    with peak_memory() as peak:
        assert sum(1 for _ in iter_entries(data)) == 100_000
    assert peak.bytes < 4 * limits.MIB

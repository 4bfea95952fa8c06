"""Good bytes, spoiled: at random, but the same way for the same random numbers."""

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence

LARGEST = 1 << 18
_EDGES = (0, 1, 7, 127, 128, 255, 256, 32767, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WIDE = (*_EDGES, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = (
    *(b"..", b"/", b"//", b"\0", b"\n", b'"', b"\\", b",", b"=", b":", b"@", b"%", b"-1", b"1e9"),
    *(b"[", b"{", b"]", b"}", b"null", b"\xff", b"\xc3\xa9", b"\\ud800", b".wh.", b".wh..wh..opq"),
    *(b"sha256:", b"0" * 64, b"9" * 30, b"A" * 300),
)
_VALUES = (
    *(None, True, -1, 0, 1, 1.5, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 80, "", "..", "a/../b"),
    *("/", "\0", "\ufffd", "x" * 5000, "sha256:" + "0" * 64, [], {}, [[]], [{}], {"": ""}),
)


def mutated(seeds: Sequence[bytes], chosen: random.Random) -> bytes:
    """One of some seeds with a few changes, most often few."""
    data = bytearray(chosen.choice(seeds))
    if data[:1] in (b"{", b"[") and chosen.random() < 0.6:
        data = bytearray(_mutated_json(bytes(data), chosen))
        if chosen.random() < 0.7:
            return bytes(data[:LARGEST])
    for _ in range(1 + int(chosen.expovariate(0.5))):
        chosen.choice(_CHANGES)(data, seeds, chosen)
    return bytes(data[:LARGEST])


def _place(data: bytearray, chosen: random.Random) -> int:
    # What comes first is most often what matters.
    span = len(data) if chosen.random() < 0.7 else min(len(data), 64)
    return chosen.randrange(span + 1)


def _flip(data: bytearray, _: object, chosen: random.Random) -> None:
    if data:
        data[_place(data, chosen) % len(data)] ^= 1 << chosen.randrange(8)


def _set_byte(data: bytearray, _: object, chosen: random.Random) -> None:
    if data:
        data[_place(data, chosen) % len(data)] = chosen.randrange(256)


def _set_number(data: bytearray, _: object, chosen: random.Random) -> None:
    width = chosen.choice((2, 4, 8))
    number = (chosen.choice(_WIDE) + chosen.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    at = _place(data, chosen) // 4 * 4 if chosen.random() < 0.5 else _place(data, chosen)
    data[at : at + width] = number.to_bytes(width, chosen.choice(("little", "big")))


def _set_digit(data: bytearray, _: object, chosen: random.Random) -> None:
    digits = [at for at, byte in enumerate(data[:4096]) if 48 <= byte < 58]
    if digits:
        data[chosen.choice(digits)] = 48 + chosen.randrange(10)


def _cut_out(data: bytearray, _: object, chosen: random.Random) -> None:
    at = _place(data, chosen)
    del data[at : at + _length(chosen)]


def _repeat(data: bytearray, _: object, chosen: random.Random) -> None:
    at = _place(data, chosen)
    data[at:at] = data[at : at + _length(chosen)] * chosen.choice((1, 1, 2, 50))


def _put_in(data: bytearray, _: object, chosen: random.Random) -> None:
    at = _place(data, chosen)
    text = chosen.choice(_TEXTS) if chosen.random() < 0.7 else chosen.randbytes(_length(chosen))
    data[at : at + chosen.choice((0, len(text)))] = text


def _cut_off(data: bytearray, _: object, chosen: random.Random) -> None:
    del data[_place(data, chosen) :]


def _cross(data: bytearray, seeds: Sequence[bytes], chosen: random.Random) -> None:
    other = chosen.choice(seeds)
    start = chosen.randrange(len(other) + 1)
    at = _place(data, chosen)
    data[at : at + chosen.choice((0, _length(chosen)))] = other[start : start + _length(chosen)]


def _length(chosen: random.Random) -> int:
    return 1 + int(chosen.expovariate(chosen.choice((0.5, 0.05, 0.002))))


_CHANGES: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    *(_flip, _set_byte, _set_number, _set_digit, _cut_out, _repeat, _put_in, _cut_off, _cross),
)


def _mutated_json(data: bytes, chosen: random.Random) -> bytes:
    """Some values of a document changed for others that a reader may not expect."""
    try:
        document = json.loads(data)
    except ValueError:  # it only begins like one
        return data
    for _ in range(1 + int(chosen.expovariate(0.7))):
        holders = list(_holders(document))
        if not holders:
            break
        holder = chosen.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = chosen.choice(keys)
        match chosen.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chosen.choice([key.upper(), "x", *keys])] = holder[key]
            case 2:
                # A copy: a document that contains itself cannot be written down.
                holder[key] = copy.deepcopy(chosen.choice(holders))
            case _:
                holder[key] = copy.deepcopy(chosen.choice(_VALUES))
    return json.dumps(document).encode()


def _holders(value: object) -> Iterator[dict | list]:
    """Every object and list within that is not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)

"""One case, pushed through a parser in every framing: whole, byte by byte, cut at random."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from imgvol.errors import ContentError

Result = TypeVar("Result")


def iter_framings(data: bytes, *, seed: int = 0) -> Iterator[list[bytes | memoryview]]:
    """The ways to cut `data` up, empty pieces and memoryviews among them."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    rng = random.Random(seed)
    view = memoryview(data)
    for largest in (3, 511, 512, 513, 5000):
        pieces: list[bytes | memoryview] = [b""]
        position = 0
        while position < len(data):
            step = rng.randint(1, largest)
            pieces.append(view[position : position + step])
            position += step
        yield pieces


def outcome(run: Callable[[], Result]) -> Result | tuple[type[ContentError], str]:
    """What a call gives, its result or the error's class and text: something to compare."""
    try:
        return run()
    except ContentError as error:
        return type(error), str(error)


def in_every_framing(data: bytes, run: Callable[[Iterable[bytes | memoryview]], Result]) -> Result:
    """Runs a parser over every framing of `data`, and demands one outcome from all of them.

    Returns the result for the whole data, or raises its error.
    """
    whole, *others = iter_framings(data)
    expected = outcome(lambda: run(whole))
    for pieces in others:
        assert outcome(lambda pieces=pieces: run(pieces)) == expected
    return run(whole)

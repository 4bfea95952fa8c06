"""inflate of zlib-ng or zlib, by ctypes: Python's modules of both do not tell where blocks end.

Three functions more than the modules have are needed: `inflate` with `Z_BLOCK`, which returns at
the end of each deflate block and says at which bit that is; `inflateGetDictionary`, which gives the
window at that point; and `inflateReset2`, which goes on with the next member.

zlib-ng takes half of zlib's time. It is the one inside of the extension module `zlib_ng`, which
leaves its functions visible; where it does not, the system's zlib has the same since 1.2.8 (2013).
"""

import ctypes
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from imgvol.errors import InvalidLayer, MachineLacks

WINDOW: Final = 1 << 15

_Z_NO_FLUSH: Final = 0
_Z_BLOCK: Final = 5
_Z_OK: Final = 0
_Z_STREAM_END: Final = 1
_Z_BUF_ERROR: Final = -5
# A gzip wrapper, and the largest window.
_GZIP_ONLY: Final = 16 + 15
# `data_type` when inflate returns because of Z_BLOCK.
_AT_BLOCK_END: Final = 128
_LAST_BLOCK: Final = 64
_UNUSED_BITS: Final = 7

# What both streams begin with; `size_t` is what `unsigned long` is on Linux.
_COMMON_FIELDS: Final = (
    ("next_in", ctypes.c_void_p),
    ("avail_in", ctypes.c_uint),
    ("total_in", ctypes.c_size_t),
    ("next_out", ctypes.c_void_p),
    ("avail_out", ctypes.c_uint),
    ("total_out", ctypes.c_size_t),
    ("msg", ctypes.c_char_p),
    ("state", ctypes.c_void_p),
    ("zalloc", ctypes.c_void_p),
    ("zfree", ctypes.c_void_p),
    ("opaque", ctypes.c_void_p),
    ("data_type", ctypes.c_int),
)


class _ZlibStream(ctypes.Structure):
    """`z_stream` of zlib.h."""

    _fields_ = (  # type: ignore[mutable-override] # as ctypes documents it
        *_COMMON_FIELDS,
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class _ZlibNgStream(ctypes.Structure):
    """`zng_stream` of zlib-ng.h."""

    _fields_ = (  # type: ignore[mutable-override] # as ctypes documents it
        *_COMMON_FIELDS,
        ("adler", ctypes.c_uint32),
        ("reserved", ctypes.c_ulong),
    )


class _Library(NamedTuple):
    """The functions of a library that are used, each with the address of a stream first."""

    stream: type[ctypes.Structure]
    open: Callable[[int, int], int]
    inflate: Callable[[int, int], int]
    reset: Callable[[int, int], int]
    get_dictionary: Callable[[int, int, int], int]
    end: Callable[[int], int]


@cache
def _load() -> _Library:
    for name in _candidates():
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(found, "zng_inflateGetDictionary"):
            return _bind(found, "zng_", _ZlibNgStream)
        if hasattr(found, "inflateGetDictionary"):
            return _bind(found, "", _ZlibStream)
    raise MachineLacks(
        "there is no zlib (libz.so.1) to make checkpoints of gzip with",
        hint="Install it: apt install zlib1g, dnf install zlib, apk add zlib.",
    )


def _candidates() -> Iterator[str | None]:
    # Found and not imported: nothing of the module itself is needed.
    module = find_spec("zlib_ng.zlib_ng") if find_spec("zlib_ng") else None
    if module is not None:
        yield module.origin
    yield "libz.so.1"
    # An interpreter that brings its own; None is the interpreter itself.
    yield getattr(zlib, "__file__", None)


def _bind(library: ctypes.CDLL, prefix: str, stream: type[ctypes.Structure]) -> _Library:
    address, number = ctypes.c_void_p, ctypes.c_int

    def function(name: str, *arguments: Any) -> Callable[..., int]:
        found = library[prefix + name]
        found.argtypes = (address, *arguments)
        return found

    if prefix:
        start = function("inflateInit2", number)
    else:
        # There the plain name is a macro, which adds what the caller was compiled with.
        checked = function("inflateInit2_", number, ctypes.c_char_p, number)
        size = ctypes.sizeof(stream)

        def start(handle: int, bits: int) -> int:
            return checked(handle, bits, b"1.2", size)

    return _Library(
        stream,
        start,
        function("inflate", number),
        function("inflateReset2", number),
        function("inflateGetDictionary", address, address),
        function("inflateEnd"),
    )


class GzipStream:
    """Inflates gzip members, one after the other, and stops where deflate blocks end.

        stream = GzipStream(size_of_pieces)
        stream.give(data)
        while stream.step():            # or skip(size), over the ends of blocks
            use(stream.output)          # what this step brought
            if stream.is_at_block: ...  # between two blocks, or before the first of a member

    Args:
        piece: The most that one step brings.

    Attributes:
        output: Plain bytes of the last step.
        consumed: How much of the input of the last `give` has been used.
        is_at_block: Whether the last step ended before a block.
        bits: How many bits of the last byte used belong to what follows; at a block only.
        has_ended: Whether the last step ended a member, and none has begun since.
    """

    def __init__(self, piece: int) -> None:
        self._library = _load()
        self._stream: Any = self._library.stream()
        self._handle = ctypes.addressof(self._stream)
        self._target = ctypes.create_string_buffer(piece)
        self._address = ctypes.addressof(self._target)
        self._view = memoryview(self._target).cast("B")
        self._window = ctypes.create_string_buffer(WINDOW)
        self._input = b""
        self.output = memoryview(b"")
        self.consumed = 0
        self.bits = 0
        self.is_at_block = self.has_ended = False
        if self._library.open(self._handle, _GZIP_ONLY) != _Z_OK:
            raise MemoryError

    def __del__(self) -> None:
        # Frees what `open` took; after a failed one there is nothing, and that is no error.
        if hasattr(self, "_handle"):
            self._library.end(self._handle)

    def give(self, data: bytes) -> None:
        """Gives the next input; all of what was given before must have been used."""
        assert not self._stream.avail_in, "the input before has not been used"
        self._input = data  # zlib has its address
        self._stream.next_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        self._stream.avail_in = len(data)
        self.consumed = 0

    def step(self) -> bool:
        """Goes on until a block ends, the output is full, or the input used up.

        The output stays valid until the next step.

        Returns:
            Whether it got any further; False: it needs more input.

        Raises:
            InvalidLayer: The data is not gzip, or damaged; `offset` is in the last input.
        """
        return self._inflate(_Z_BLOCK, len(self._target))

    def skip(self, size: int) -> bool:
        """As `step`, but goes on over the ends of blocks, by no more than so many plain bytes."""
        goes_on = self._inflate(_Z_NO_FLUSH, min(size, len(self._target)))
        self.is_at_block = False  # whatever it says: none has been looked for
        return goes_on

    def _inflate(self, flush: int, size: int) -> bool:
        stream = self._stream
        if self.has_ended:
            if not stream.avail_in:
                return False
            self._library.reset(self._handle, _GZIP_ONLY)
            self.has_ended = False
        stream.next_out = self._address
        stream.avail_out = size
        before = stream.avail_in
        result = self._library.inflate(self._handle, flush)
        self.consumed += before - stream.avail_in
        self.output = self._view[: size - stream.avail_out]
        if result == _Z_STREAM_END:
            self.has_ended, self.is_at_block = True, False
            return True
        if result == _Z_BUF_ERROR:
            self.is_at_block = False
            return False
        if result != _Z_OK:
            reason = (stream.msg or b"it needs a dictionary").decode("ascii", "replace")
            raise InvalidLayer(f"damaged gzip data: {reason}", offset=self.consumed)
        kind = stream.data_type
        self.is_at_block = bool(kind & _AT_BLOCK_END) and not kind & _LAST_BLOCK
        self.bits = kind & _UNUSED_BITS
        return True

    def window(self) -> bytes:
        """The last plain bytes of the member, as many as a window has, zeros before the first."""
        size = ctypes.c_uint(0)
        self._library.get_dictionary(
            self._handle, ctypes.addressof(self._window), ctypes.addressof(size)
        )
        return self._window.raw[: size.value].rjust(WINDOW, b"\0")

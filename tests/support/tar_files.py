"""Any files of any tar, for hypothesis: name, content, mode and owner of each."""

from hypothesis import strategies as st

from imgvol.errors import Unsupported
from imgvol.layers.compression import Compression, sniff

# Whiteouts of nothing, which no layer may have.
_NO_NAMES = {b".wh.", b".wh..", b".wh..."}


def _is_a_name(name: bytes) -> bool:
    if set(name) & {0, ord("/")} or name in _NO_NAMES:
        return False
    # A plain tar begins with a name, and nothing tells it from what is compressed but that.
    try:
        return sniff(name.ljust(100, b"\0")) is Compression.NONE
    except Unsupported:
        return False


_NAMES = st.binary(min_size=1, max_size=40).filter(_is_a_name)
FILES = st.lists(
    st.tuples(
        _NAMES, st.binary(max_size=3000), st.integers(0, 0o7777), st.integers(0, (1 << 21) - 1)
    ),
    max_size=12,
)

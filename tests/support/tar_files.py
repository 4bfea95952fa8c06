"""Any files of any tar, for hypothesis: name, content, mode and owner of each."""

from hypothesis import strategies as st

# Whiteouts of nothing, which no layer may have.
_NO_NAMES = {b".wh.", b".wh..", b".wh..."}
# What a first name of a plain tar must not be like: by its bytes it would be compressed.
_MAGICS = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd")
_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: (
        not set(name) & {0, ord("/")} and name not in _NO_NAMES and not name.startswith(_MAGICS)
    )
)
FILES = st.lists(
    st.tuples(
        _NAMES, st.binary(max_size=3000), st.integers(0, 0o7777), st.integers(0, (1 << 21) - 1)
    ),
    max_size=12,
)

"""Paths as bytes: cut into components and cleaned, without looking at any tree."""


def split_path(path: bytes) -> list[bytes]:
    """The components of a path, without the empty ones and "."; ".." stays."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def clean_path(path: bytes) -> list[bytes]:
    """The components of a path from the root, ".." resolved lexically; it stops at the root."""
    names = split_path(path)
    if b".." not in names:
        return names
    cleaned: list[bytes] = []
    for name in names:
        if name != b"..":
            cleaned.append(name)
        elif cleaned:
            cleaned.pop()
    return cleaned


def join_path(names: list[bytes]) -> bytes:
    """The path from the root with these components."""
    return b"/" + b"/".join(names)

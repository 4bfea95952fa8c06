"""Short forms of canonical names."""

from typing import Final

_DEFAULTS: Final = ("docker.io/library/", "docker.io/")


def familiar(name: str) -> str:
    """`docker.io/library/alpine:3.20` as people type it: `alpine:3.20`."""
    for prefix in _DEFAULTS:
        rest = name.removeprefix(prefix)
        # What has a dot or colon before a slash would be read as a host.
        if rest != name and _is_unambiguous(rest):
            return rest
    return name


def _is_unambiguous(rest: str) -> bool:
    first, slash, _ = rest.partition("/")
    return not slash or not ("." in first or ":" in first or first == "localhost")


def short_id(digest: str) -> str:
    """The first 12 digits of a digest."""
    return digest.rpartition(":")[2][:12]

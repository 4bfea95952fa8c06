"""Shell patterns over image names, for choosing images from a list.

The dialect is Go's `path.Match`, which users of image filters know: `*` and `?` stop at a slash,
`[a-c]` and `[^a-c]` are classes, a backslash takes the next character literally.
"""

import re
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidArgument
from imgvol.oci.reference import Reference

# One item of a class: a character or an escaped one, alone or as a range.
_CLASS_CHARACTER = r"(?:\\.|[^\]\\-])"
_CLASS_ITEM = rf"({_CLASS_CHARACTER})(?:-({_CLASS_CHARACTER}))?"
_ITEM: Final = re.compile(_CLASS_ITEM, re.DOTALL)
_TOKEN: Final = re.compile(
    rf"(?P<stars>\*+)|(?P<any>\?)|\[(?P<negated>\^?+)(?P<items>(?:{_CLASS_ITEM})+)\]"
    r"|\\(?P<escaped>.)|(?P<literal>[^\\\[])",
    re.DOTALL,
)


def familiar_match(pattern: str, reference: Reference) -> bool:
    """Whether a pattern fits a reference's familiar form, with its tag or without.

    Raises:
        InvalidArgument: The pattern is malformed.
    """
    regex = _compile(pattern)
    bare = reference.with_tag(None).with_digest(None)
    return any(regex.fullmatch(name.familiar()) is not None for name in (reference, bare))


def _compile(pattern: str) -> re.Pattern[str]:
    if len(pattern) > limits.NAME_LENGTH:
        raise InvalidArgument("pattern is too long", allowed=limits.NAME_LENGTH)
    chunks = [""]  # what stands between the stars
    position = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            raise InvalidArgument("malformed pattern", pattern=pattern, offset=position)
        if token["stars"]:
            chunks.append("")
        else:
            chunks[-1] += _translate(token)
        position = token.end()
    return re.compile(_join(chunks), re.DOTALL)


def _join(chunks: list[str]) -> str:
    first, *middle = chunks
    if not middle:
        return first
    last = middle.pop()
    # The first place where a chunk fits is as good as any later one, for another star follows: the
    # atomic groups never look back, and many stars cost no more than one.
    return f"{first}{''.join(f'(?>[^/]*?{chunk})' for chunk in middle)}[^/]*{last}"


def _translate(token: re.Match[str]) -> str:
    if token["any"]:
        return "[^/]"
    if token["items"]:
        ranges = (_translate_range(low, high or low) for low, high in _ITEM.findall(token["items"]))
        body = "".join(ranges)
        if not body:  # every range is empty, such as [z-a]
            return "." if token["negated"] else "(?!)"
        return f"[{token['negated']}{body}]"
    return re.escape(token["escaped"] or token["literal"])


def _translate_range(low: str, high: str) -> str:
    first, last = low[-1], high[-1]
    return f"{re.escape(first)}-{re.escape(last)}" if first <= last else ""

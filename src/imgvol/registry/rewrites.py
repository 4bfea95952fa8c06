"""Names of repositories on a mirror, by the rules of k3s' and RKE2's `registries.yaml`.

A rule is a regular expression in Go's language (RE2) and a replacement in Go's. Replacing differs
from Python's in two points: `$1` is a group, and an empty match right after another match counts
for nothing, so that `(.*)` matches a name once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import re2

from imgvol import limits

_GROUP: Final = re.compile(r"\$(?:\$|\{(?P<braced>\w+)\}|(?P<plain>\w+))", re.ASCII)
# As oci.reference has it; what is not a name is not asked for.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rule."""

    pattern: Any  # of re2, which has no types
    replacement: str

    @classmethod
    def compile(cls, pattern: str, replacement: str) -> Self:
        """Read a rule.

        Raises:
            ValueError: It is no regular expression of RE2, or the replacement is too long.
        """
        if len(replacement) > limits.REWRITE_LENGTH:
            raise ValueError("too long a replacement")
        options = re2.Options()
        options.log_errors = False
        try:
            return cls(re2.compile(pattern, options), replacement)
        except (re2.error, UnicodeEncodeError) as error:
            raise ValueError("not a regular expression of RE2") from error

    def apply(self, name: str) -> str:
        """Replace every match. Go's regexp.ReplaceAllString."""
        pieces: list[str] = []
        end = position = 0
        while position <= len(name):
            match = self.pattern.search(name, position)
            if match is None:
                break
            pieces.append(name[end : match.start()])
            if match.end() > end or match.start() == 0:
                pieces.append(self._expand(match))
            end = match.end()
            position = max(end, position + 1)
        return "".join(pieces) + name[end:]

    def _expand(self, match: Any) -> str:
        """The replacement for one match. Go's Regexp.Expand: what is no group is empty."""

        def group(found: re.Match[str]) -> str:
            name = found["braced"] or found["plain"]
            if name is None:
                return "$"
            key = int(name[:9]) if name.isdigit() else name
            try:
                return match.group(key) or ""
            except (IndexError, KeyError):
                return ""

        return _GROUP.sub(group, self.replacement)


def rewrite(path: str, rules: Sequence[Rewrite]) -> str:
    """The name after the first rule that makes another good name of it."""
    for rule in rules:
        renamed = rule.apply(path)
        is_good = len(renamed) <= limits.REPOSITORY_NAME_LENGTH and _NAME.fullmatch(renamed)
        if is_good and renamed != path:
            return renamed
    return path

"""Platforms, and the order in which they are acceptable to a machine.

The rules are those of containerd's `platforms` package, which decides for most users which manifest
of an index they get. Everything here is pure: what the machine is comes in as arguments.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import quote, unquote

from imgvol.errors import InvalidPlatform

_COMPONENT: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
# os, and in parentheses its version and features: windows(10.0.17763+win32k), linux(+gpu).
_OS: Final = re.compile(
    r"([A-Za-z0-9_.-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?", re.ASCII
)
_TEXT_LENGTH: Final = 256

# Go's GOOS and GOARCH lists: a platform of one word is one or the other.
# fmt: off
_KNOWN_OS: Final = frozenset((
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux",
    "nacl", "netbsd", "openbsd", "plan9", "solaris", "wasip1", "windows", "zos",
))
_KNOWN_ARCHITECTURES: Final = frozenset((
    "386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "loong64", "mips", "mipsle",
    "mips64", "mips64le", "mips64p32", "mips64p32le", "ppc", "ppc64", "ppc64le", "riscv",
    "riscv64", "s390", "s390x", "sparc", "sparc64", "wasm",
))
# fmt: on
# What uname says where Go says something else and normalisation does not know it.
_MACHINES: Final = {
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armv5tel": "armel",
    "armv6l": "armel",
    "armv7l": "armhf",
    "armv8l": "armhf",
    "loongarch64": "loong64",
}

_ARM_OLDEST: Final = 5  # no tool builds for anything older
# Armv9.n includes Armv8.(n+5), as far as Armv8 goes.
_ARM64_V8_LAST: Final = 9
_ARM64_V9_OFFSET: Final = 5


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on: names as in Go's GOOS and GOARCH. Unknown parts are empty."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, host: "Platform | None" = None) -> Self:
        """Read `os[(version+features)]/architecture[/variant]`, or one word of these.

        Args:
            text: What the user typed: `linux/arm64`, `arm64`, `linux/arm/v7`.
            host: The machine, from which an operating system alone takes its architecture.

        Raises:
            InvalidPlatform: `text` is no platform, or says too little without `host`.
        """
        first, *others = text.split("/", 3) if len(text) <= _TEXT_LENGTH else [""]
        match = _OS.fullmatch(first)
        if match is None or len(others) > 2 or not all(map(_COMPONENT.fullmatch, others)):
            raise InvalidPlatform(
                "not a platform",
                hint="Write it as os/architecture[/variant], for example linux/arm64.",
                platform=text[:_TEXT_LENGTH],
            )
        os, architecture, variant = (
            (match[1], *others, "")[:3] if others else _from_word(match[1], host)
        )
        features = (match[3] or "").split("+")[1:]
        return cls(
            os, architecture, variant, unquote(match[2] or ""), tuple(map(unquote, features))
        ).normalized()

    def normalized(self) -> Self:
        """The same platform with one spelling for each thing.

        An empty operating system is Linux, the only one that imgvol runs on.
        """
        os = self.os.lower() or "linux"
        architecture, variant = _normalized_architecture(self.architecture, self.variant)
        return replace(
            self,
            os="darwin" if os == "macos" else os,
            architecture=architecture,
            variant=variant,
            os_features=tuple(sorted(self.os_features)),
        )

    def __str__(self) -> str:
        os = self.os
        if self.os_version or self.os_features:
            details = "+".join(
                quote(text, safe="") for text in (self.os_version, *self.os_features)
            )
            os = f"{os}({details})"
        return "/".join(part for part in (os, self.architecture, self.variant) if part)


def _from_word(word: str, host: Platform | None) -> tuple[str, str, str]:
    os = Platform(word, "").normalized().os
    if os in _KNOWN_OS:
        if host is None:
            raise InvalidPlatform("the platform names no architecture", platform=word)
        return os, host.architecture, host.variant
    if Platform("", word).normalized().architecture not in _KNOWN_ARCHITECTURES:
        raise InvalidPlatform("unknown operating system or architecture", platform=word)
    return host.os if host else "linux", word, ""


def host_platform(sysname: str, machine: str) -> Platform:
    """The platform of a machine whose `os.uname()` says this."""
    return Platform(sysname, _MACHINES.get(machine, machine)).normalized()


@dataclass(frozen=True, slots=True)
class Matcher:
    """Which platforms are acceptable: `accepted`, normalised, best first."""

    accepted: tuple[Platform, ...]

    def rank(self, platform: Platform) -> int | None:
        """How good a platform is: 0 is best, None is not acceptable. A sort key."""
        candidate = platform.normalized()
        for position, wanted in enumerate(self.accepted):
            if _is_same(wanted, candidate):
                return position
        return None

    def match(self, platform: Platform) -> bool:
        """Whether a platform is acceptable."""
        return self.rank(platform) is not None

    def less(self, one: Platform, other: Platform) -> bool:
        """Whether `one` is better than `other`."""
        last = len(self.accepted)
        ranks = (self.rank(one), self.rank(other))
        better, worse = (last if rank is None else rank for rank in ranks)
        return better < worse


def only(platform: Platform) -> Matcher:
    """Accept a platform and all that its processors run too, the closest first."""
    return Matcher(tuple(_runnable(platform.normalized())))


def only_strict(platform: Platform) -> Matcher:
    """Accept this very platform."""
    return Matcher((platform.normalized(),))


def _is_same(wanted: Platform, candidate: Platform) -> bool:
    return (
        (wanted.os, wanted.architecture, wanted.variant)
        == (candidate.os, candidate.architecture, candidate.variant)
        and set(candidate.os_features) <= set(wanted.os_features)
        and _has_version(wanted, candidate)
    )


def _has_version(wanted: Platform, candidate: Platform) -> bool:
    # Only Windows binds an image to the kernel's version: major.minor.build, whatever the revision.
    if wanted.os != "windows" or not wanted.os_version or not candidate.os_version:
        return True
    return wanted.os_version.split(".")[:3] == candidate.os_version.split(".")[:3]


def _runnable(platform: Platform) -> list[Platform]:
    def others(architecture: str, variants: list[str]) -> list[Platform]:
        return [
            replace(platform, architecture=architecture, variant=v).normalized() for v in variants
        ]

    match platform.architecture:
        case "amd64":
            version = _version(platform.variant)[0]
            older = [f"v{n}" for n in range(version - 1, 0, -1)]
            return [platform, *others("amd64", older), *others("386", [""])]
        case "arm":
            return [platform, *others("arm", _older_arm(_version(platform.variant)[0]))]
        case "arm64":
            older = _older_arm64(*_version(platform.variant or "v8"))
            # Every arm64 processor runs 32-bit code, as far as images are concerned.
            return [platform, *others("arm64", older), *others("arm", ["v8", *_older_arm(8)])]
        case _:
            return [platform]


def _older_arm(version: int) -> list[str]:
    return [f"v{n}" for n in range(version - 1, _ARM_OLDEST - 1, -1)]


def _older_arm64(major: int, minor: int) -> list[str]:
    if major == 9:
        last = min(minor + _ARM64_V9_OFFSET, _ARM64_V8_LAST)
        return _minors(9, minor - 1) + _minors(8, last)
    return _minors(8, minor - 1) if major == 8 else []


def _minors(major: int, last: int) -> list[str]:
    return [f"v{major}.{n}" if n else f"v{major}" for n in range(last, -1, -1)]


# Variants are a letter and small numbers. What is longer is no variant that we know, and must not
# make a list of a billion older ones.
_VARIANT: Final = re.compile(r"v(\d{1,2})(?:\.(\d{1,2}))?", re.ASCII)


def _version(variant: str) -> tuple[int, int]:
    match = _VARIANT.fullmatch(variant)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _normalized_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            return "arm64", _ARM64_VARIANTS.get(variant, variant)
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            return "arm", _ARM_VARIANTS.get(variant, variant)
        case _:
            return architecture, variant


_ARM64_VARIANTS: Final = {
    **dict.fromkeys(("8", "v8", "v8.0"), ""),
    **dict.fromkeys(("9", "9.0", "v9.0"), "v9"),
}
_ARM_VARIANTS: Final = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}

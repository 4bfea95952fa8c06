"""Runtime handlers: what a runtime's name for a kind of sandbox means for the images in it.

A sandbox that runs a virtual machine of another architecture wants other images than the node, and
one that shares files with its guest wants them as a whole. Both follow from the handler's name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from imgvol.errors import InvalidArgument
from imgvol.images.readiness import Readiness
from imgvol.images.resolve import wanted_platform

# Kubernetes takes DNS labels for handlers; names of containerd's runtimes have more letters.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_LAZY: Final[Mapping[str, Readiness]] = {"auto": Readiness.LAZY, "off": Readiness.STORED}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeHandler:
    """What is pulled for the sandboxes of a handler.

    Attributes:
        name: As runtimes and kubelets spell it; empty for the default.
        platform: None: this machine's.
        readiness: None: whatever the request asks for.
    """

    name: str = ""
    platform: str | None = None
    readiness: Readiness | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `NAME=[PLATFORM][,lazy=auto|off]`.

        Raises:
            InvalidArgument: It is something else.
            InvalidPlatform: The platform is none.
        """
        name, separator, rest = text.partition("=")
        platform, comma, option = rest.partition(",")
        key, _, value = option.partition("=")
        readiness = _LAZY.get(value) if key == "lazy" else None
        if not separator or not _NAME.fullmatch(name) or (comma and readiness is None):
            raise InvalidArgument(
                "not a runtime handler",
                hint="Such as kata=linux/arm64, or kata=linux/arm64,lazy=off.",
                value=text,
            )
        wanted_platform(platform)
        return cls(name=name, platform=platform or None, readiness=readiness)


class RuntimeHandlers:
    """The handlers that are configured, and the default, which always is.

    Raises:
        InvalidArgument: Two have one name.
    """

    def __init__(self, handlers: Iterable[RuntimeHandler] = ()) -> None:
        self._handlers = {"": RuntimeHandler()}
        for handler in handlers:
            if handler.name in self._handlers:
                raise InvalidArgument("a runtime handler is given twice", handler=handler.name)
            self._handlers[handler.name] = handler

    def get(self, name: str) -> RuntimeHandler:
        """The handler of a name; empty: the default.

        Raises:
            InvalidArgument: There is none. The interface wants that said: taking the default would
                give a sandbox images that it cannot run.
        """
        try:
            return self._handlers[name]
        except KeyError:
            raise InvalidArgument(
                "unknown runtime handler",
                hint="Configure it: imgvol serve --runtime-handler NAME=PLATFORM.",
                handler=name,
            ) from None

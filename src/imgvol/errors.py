"""Every error imgvol raises on purpose, as one tree.

Two questions choose the class: whose fault is it, and can the same call succeed later?

    ImgvolError
    ├── CallerError                 the request is wrong: fix it and ask again
    │   ├── InvalidArgument         malformed value: reference, digest, platform, path, option
    │   │   ├── InvalidReference
    │   │   ├── InvalidDigest
    │   │   ├── InvalidPlatform
    │   │   └── PathEscapes         a path that leaves what it may name
    │   ├── NotFound                a well-formed name of nothing
    │   ├── Conflict                the thing exists, and is in the way or in use
    │   └── PermissionDenied
    ├── ContentError                the bytes that we were given are wrong: nobody should retry
    │   ├── InvalidDocument         manifest, index, config, or another JSON document
    │   ├── InvalidLayer            tar, gzip, zstd
    │   ├── DigestMismatch          bytes do not hash to what names them (size included)
    │   ├── LimitExceeded           larger than a named limit allows
    │   ├── Unsupported             a format that we know of and do not read
    │   └── NoMatchingPlatform
    ├── RemoteError                 a registry or token service failed us
    │   ├── Unauthorized            401 or 403 after all that credentials could do
    │   ├── RegistryUnavailable     cannot connect, 5xx, reset, stalled; retryable
    │   │   └── TooManyRequests     429 past the retry budget
    │   ├── PushRefused             it takes no pushes, or not what we push
    │   └── ProtocolError           an answer that the specification does not allow
    ├── LocalError                  this machine: disk, kernel, privileges
    │   ├── StoreFull               ENOSPC, EDQUOT, EFBIG; retryable after making room
    │   ├── StoreDamaged            local bytes are not what was stored
    │   ├── StoreLocked             another daemon owns the root
    │   ├── BadConfiguration        a file that an administrator wrote cannot be used
    │   ├── DaemonUnavailable       the command cannot reach or start a daemon
    │   └── MachineLacks            to be installed or granted first: /dev/fuse, root, a program
    ├── ImageVolumeMountFailed      a sandbox does not get a volume; its cause is one of the others
    └── InternalError               a defect of imgvol

Errors carry data (`fields`) beside a one-line `message`; `hint` says what to do next. No secret
may enter any of them: URLs are redacted where they are put in. The three edges (errno, HTTP
status, gRPC code) each map classes in one function of their own, from the class attributes below.
"""

import copy
import enum
import errno as _errno
from collections.abc import Mapping
from typing import ClassVar, Self


class Blame(enum.Enum):
    """Whose fault an error is."""

    CALLER = "caller"
    CONTENT = "remote content"
    SERVICE = "remote service"
    LOCAL = "local system"
    IMGVOL = "imgvol"


class ImgvolError(Exception):
    """The root of the tree.

    Args:
        message: One line, lower case, no full stop: what is wrong, with what.
        hint: What the reader can do next, as a sentence, or empty.
        **fields: The data: digest, reference, url, offset, expected, actual, limit, path …
    """

    blame: ClassVar[Blame] = Blame.IMGVOL
    retryable: ClassVar[bool] = False
    errno: ClassVar[int] = _errno.EIO
    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields: Mapping[str, object] = {k: v for k, v in fields.items() if v is not None}

    @property
    def code(self) -> str:
        """The class's name in kebab case: the stable word that scripts match on."""
        name = type(self).__name__
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")

    def anew(self) -> Self:
        """An equal error that was never raised: to keep one, or to raise one that is kept.

        What was raised knows the calls that it came through, and these know their objects. So it
        would keep whoever keeps it, and whatever is open there.
        """
        return copy.copy(self)

    def __str__(self) -> str:
        details = ", ".join(f"{k} {_shown(v)}" for k, v in self.fields.items())
        return f"{self.message} ({details})" if details else self.message


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = str(value)
    # Values come from outside: nothing unprintable reaches a terminal or a log line.
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class CallerError(ImgvolError):
    """The request is wrong."""

    blame = Blame.CALLER
    errno = _errno.EINVAL
    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class InvalidArgument(CallerError):
    """A malformed value."""


class InvalidReference(InvalidArgument):
    """Not an image reference."""


class InvalidDigest(InvalidArgument):
    """Not a digest: unknown algorithm, wrong length, wrong letters."""


class InvalidPlatform(InvalidArgument):
    """Not a platform."""


class PathEscapes(InvalidArgument):
    """A path that leaves the view it is looked up in, where that is not allowed."""

    errno = _errno.EXDEV


class NotFound(CallerError):
    """Nothing has this name: an image, a volume, a path in an image."""

    errno = _errno.ENOENT
    http_status = 404
    grpc_code = "NOT_FOUND"


class Conflict(CallerError):
    """Something is in the way or in use."""

    errno = _errno.EBUSY
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class PermissionDenied(CallerError):
    """The caller may not do this."""

    errno = _errno.EACCES
    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class ContentError(ImgvolError):
    """Bytes from outside are not what they should be."""

    blame = Blame.CONTENT
    http_status = 422
    grpc_code = "DATA_LOSS"


class InvalidDocument(ContentError):
    """A JSON document that the image specification does not allow. Field `path`: where in it."""


class InvalidLayer(ContentError):
    """A layer that cannot be read. Field `offset`: position in the stream that is wrong."""


class DigestMismatch(ContentError):
    """Bytes do not match what names them. Fields `expected`, `actual`."""


class LimitExceeded(ContentError):
    """More than a named limit allows. Fields `limit` (its name) and `allowed`."""

    grpc_code = "RESOURCE_EXHAUSTED"


class Unsupported(ContentError):
    """A known format that imgvol does not read."""

    grpc_code = "UNIMPLEMENTED"


class NoMatchingPlatform(ContentError):
    """No manifest of an index fits the wanted platform."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class RemoteError(ImgvolError):
    """A registry or a token service failed."""

    blame = Blame.SERVICE
    http_status = 502
    grpc_code = "UNAVAILABLE"


class Unauthorized(RemoteError):
    """The registry refuses us, with the credentials that we have."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class RegistryUnavailable(RemoteError):
    """The registry cannot be reached or does not answer well."""

    retryable = True
    http_status = 503


class TooManyRequests(RegistryUnavailable):
    """The registry limits our rate."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"


class PushRefused(RemoteError):
    """The registry does not take what is pushed, whoever pushes it."""


class ProtocolError(RemoteError):
    """An answer that the distribution specification does not allow."""


class LocalError(ImgvolError):
    """This machine cannot do it."""

    blame = Blame.LOCAL
    grpc_code = "FAILED_PRECONDITION"


class StoreFull(LocalError):
    """No room left where the store lives."""

    retryable = True
    errno = _errno.ENOSPC
    http_status = 507
    grpc_code = "RESOURCE_EXHAUSTED"


class StoreDamaged(LocalError):
    """Local bytes are not what was stored."""

    grpc_code = "DATA_LOSS"


class StoreLocked(LocalError):
    """Another daemon owns the root."""

    http_status = 409


class BadConfiguration(LocalError):
    """A file of the administrator's cannot be used; its fields say which, and where in it."""


class DaemonUnavailable(LocalError):
    """The daemon cannot be reached or started."""

    retryable = True
    http_status = 503
    grpc_code = "UNAVAILABLE"


class MachineLacks(LocalError):
    """Something must be installed or granted first; the hint is the command to run."""

    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class ImageVolumeMountFailed(ImgvolError):
    """A sandbox does not get a volume. CRI clients know the name, and look for it in the text.

    Its cause (`__cause__`) tells whose fault that is; answers of the API have the cause's status.
    """

    grpc_code = "FAILED_PRECONDITION"

    @property
    def decisive(self) -> ImgvolError:
        """The error to go by: the cause, if it is one of ours."""
        return self.__cause__ if isinstance(self.__cause__, ImgvolError) else self


class InternalError(ImgvolError):
    """A defect of imgvol: please report it."""

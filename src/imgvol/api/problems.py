"""The API's edge for errors: the one place where an exception becomes a status and a document.

Values in `fields` come from outside and may be of any type: here they become JSON, and nothing that
is not a plain value is trusted to have a harmless `repr`.
"""

import errno
from math import isfinite

from imgvol.errors import ImageVolumeMountFailed, ImgvolError, InternalError, LocalError

# A field longer than this helps nobody and may be an attack on a log or a terminal.
_FIELD_LENGTH = 4096
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})


class RequestError(ImgvolError):
    """A request that HTTP itself answers: no such route, wrong method, too large, too slow.

    Args:
        status: HTTP status.
        message: As for every error.
        hint: As for every error.
        headers: What HTTP wants beside the status, such as `Allow` with 405.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str = "",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.headers = headers

    @property
    def code(self) -> str:
        """`invalid-request`, whatever the status: scripts look at the status."""
        return "invalid-request"


def http_status(error: ImgvolError) -> int:
    """The HTTP status of an error."""
    decisive = _decisive(error)
    return decisive.status if isinstance(decisive, RequestError) else type(decisive).http_status


def error_document(error: ImgvolError) -> dict[str, object]:
    """The JSON form: `{"error": {"code", "message", "hint", "retryable", "fields"}}`."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "retryable": type(_decisive(error)).retryable,
            "fields": {key: _plain(value) for key, value in error.fields.items()},
        }
    }


def as_imgvol_error(error: Exception) -> ImgvolError:
    """What to tell the client about any exception; only defects become InternalError.

    A nursery wraps what its tasks raise: a group of one stands for its member.
    """
    inner: BaseException = error
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    if isinstance(inner, ImgvolError):
        return inner
    if isinstance(inner, OSError) and inner.errno in _EXHAUSTED:
        # Whatever opens a file may meet it; nothing in the request is to blame, nor in the code.
        return LocalError(
            f"the daemon cannot open anything more: {inner.strerror}",
            hint="Let it have more file descriptors (LimitNOFILE= of its unit, ulimit -n).",
        )
    return InternalError(
        "the daemon met an error that it does not know",
        hint="This is a defect: the daemon's log has the details, please report them.",
        kind=type(inner).__name__,
    )


def _decisive(error: ImgvolError) -> ImgvolError:
    return error.decisive if isinstance(error, ImageVolumeMountFailed) else error


def _plain(value: object) -> object:
    # JSON has no word for infinity.
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value)[:_FIELD_LENGTH]

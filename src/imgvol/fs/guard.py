"""The one guard that every handler goes through, and the one place that makes FSErrors.

An exception that a transport does not expect would end its loop, and with it every view on the
machine. So nothing but FSError leaves a handler: our own errors become their errno, a missed
deadline and anything unexpected become EIO. EIO is what the caller may see for data that cannot be
had; never a short answer, never wrong bytes.

It also counts and times every request: the one place that sees how each of them ends.
"""

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

import trio

from imgvol import limits
from imgvol.errors import Blame, ImgvolError
from imgvol.fs.replies import FSError
from imgvol.tallies import RequestTallies, Result

log = logging.getLogger(__name__)

# An outage fails every read there is; whoever fetches tells of it once.
_LEVELS: Final = {Blame.SERVICE: logging.DEBUG}


class Counted(Protocol):
    """What has handlers."""

    requests: RequestTallies


S = TypeVar("S", bound=Counted)
P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Callable[..., Any])
Handler = Callable[Concatenate[S, P], R]


def guarded(handler: Handler[S, P, R]) -> Handler[S, P, R]:
    """Wraps a handler that never waits: counted, and nothing but FSError gets out."""
    name = handler.__name__

    @functools.wraps(handler)
    def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        tally = operations.requests.of(name)
        result = Result.DEFECT
        began = tally.begin()
        try:
            answer = handler(operations, *args, **kwargs)
            result = Result.OK
            return answer
        except FSError:
            result = Result.REFUSED
            raise
        except Exception as exc:  # the last fence before the kernel
            result, code = _judged(name, exc)
            raise failure(code) from exc
        finally:
            tally.end(began, result)

    return guard


def guarded_attempt(name: str) -> Callable[[Handler[S, P, R]], Handler[S, P, R]]:
    """The same for one that may leave the request to another handler, by answering None.

    Args:
        name: Of the other one: what is answered here is counted as a request of that kind.
    """

    def decorate(handler: Handler[S, P, R]) -> Handler[S, P, R]:
        @functools.wraps(handler)
        def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            result: Result | None = Result.DEFECT
            began = time.perf_counter()
            try:
                answer = handler(operations, *args, **kwargs)
                result = None if answer is None else Result.OK
                return answer
            except FSError:
                result = Result.REFUSED
                raise
            except Exception as exc:  # the last fence before the kernel
                result, code = _judged(name, exc)
                raise failure(code) from exc
            finally:
                if result is not None:
                    tally = operations.requests.of(name)
                    tally.begin()
                    tally.end(began, result)

        return guard

    return decorate


def guarded_part(handler: Handler[S, P, R]) -> Handler[S, P, R]:
    """The same for a question that is part of a request: not counted, as the request is."""
    name = handler.__name__

    @functools.wraps(handler)
    def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(operations, *args, **kwargs)
        except FSError:
            raise
        except Exception as exc:  # the last fence before the kernel
            raise failure(_judged(name, exc)[1]) from exc

    return guard


def guarded_for(allowed: Callable[..., float]) -> Callable[[H], H]:
    """The same for one that may wait.

    Args:
        allowed: How many seconds, from the handler's arguments; later, the answer is EIO.
    """

    def decorate(handler: H) -> H:
        return cast("H", _guard_waiting(handler, allowed))

    return decorate


def _guard_waiting(
    handler: Handler[S, P, Coroutine[Any, Any, R]], allowed: Callable[..., float]
) -> Handler[S, P, Coroutine[Any, Any, R]]:
    name = handler.__name__

    @functools.wraps(handler)
    async def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        tally = operations.requests.of(name)
        result = Result.CANCELLED
        began = tally.begin()
        seconds = limits.HANDLER_DEADLINE
        try:
            seconds = allowed(operations, *args, **kwargs)
            with trio.fail_after(seconds):
                answer = await handler(operations, *args, **kwargs)
            result = Result.OK
            return answer
        except FSError:
            result = Result.REFUSED
            raise
        except trio.TooSlowError as exc:
            result = Result.LATE
            log.error("%s: no answer within %g s", name, seconds)
            raise failure(errno.EIO) from exc
        except Exception as exc:  # the last fence before the kernel
            result, code = _judged(name, exc)
            raise failure(code) from exc
        finally:
            tally.end(began, result)

    return guard


def _judged(name: str, exc: Exception) -> tuple[Result, int]:
    """How a request ended that raised, and the code that its caller is told.

    The code, and not the error: a call that has a name for what it raises is kept by its own
    traceback, with the layers that it had, until Python's collector comes by.
    """
    if isinstance(exc, ImgvolError):
        if exc.blame is Blame.CALLER:
            return Result.REFUSED, exc.errno
        log.log(_LEVELS.get(exc.blame, logging.ERROR), "%s: %s", name, exc)
        return Result.FAILED, exc.errno
    log.error("%s: a defect of imgvol", name, exc_info=exc)
    return Result.DEFECT, errno.EIO


def failure(code: int) -> FSError:
    """The error that answers a request."""
    return FSError(code)

"""The one guard that every handler goes through, and the one place that makes FUSEErrors.

An exception that is not a FUSEError ends pyfuse3's main loop, and with it every view on the
machine. So nothing else leaves a handler: our own errors become their errno, a missed deadline and
anything unexpected become EIO. EIO is what the caller may see for data that cannot be had; never a
short answer, never wrong bytes.

It also counts and times every request: the one place that sees how each of them ends.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio

from imgvol import limits
from imgvol.errors import Blame, ImgvolError
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
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]


def guarded(handler: Handler[S, P, R]) -> Handler[S, P, R]:
    """Wraps a handler: a deadline, counted, and nothing but FUSEError gets out."""
    name = handler.__name__

    @functools.wraps(handler)
    async def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        tally = operations.requests.of(name)
        result = Result.CANCELLED
        began = tally.begin()
        try:
            with trio.fail_after(limits.HANDLER_DEADLINE):
                answer = await handler(operations, *args, **kwargs)
            result = Result.OK
            return answer
        except pyfuse3.FUSEError:
            result = Result.REFUSED
            raise
        except ImgvolError as exc:
            result = Result.REFUSED
            if exc.blame is not Blame.CALLER:
                result = Result.FAILED
                log.log(_LEVELS.get(exc.blame, logging.ERROR), "%s: %s", name, exc)
            raise failure(exc.errno) from exc
        except trio.TooSlowError as exc:
            result = Result.LATE
            log.error("%s: no answer within %g s", name, limits.HANDLER_DEADLINE)
            raise failure(errno.EIO) from exc
        except Exception as exc:  # the last fence before the kernel
            result = Result.DEFECT
            log.exception("%s: a defect of imgvol", name)
            raise failure(errno.EIO) from exc
        finally:
            tally.end(began, result)

    return guard


def failure(code: int) -> pyfuse3.FUSEError:
    """The error that answers a request."""
    return pyfuse3.FUSEError(code)

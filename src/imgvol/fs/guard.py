"""The one guard that every handler goes through, and the one place that makes FUSEErrors.

An exception that is not a FUSEError ends pyfuse3's main loop, and with it every view on the
machine. So nothing else leaves a handler: our own errors become their errno, a missed deadline and
anything unexpected become EIO. EIO is what the caller may see for data that cannot be had; never a
short answer, never wrong bytes.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from imgvol import limits
from imgvol.errors import Blame, ImgvolError

log = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]


def guarded(handler: Handler[S, P, R]) -> Handler[S, P, R]:
    """Wraps a handler: a deadline, and nothing but FUSEError gets out."""

    @functools.wraps(handler)
    async def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with trio.fail_after(limits.HANDLER_DEADLINE):
                return await handler(operations, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except ImgvolError as exc:
            if exc.blame is not Blame.CALLER:
                log.error("%s: %s", handler.__name__, exc)
            raise failure(exc.errno) from exc
        except trio.TooSlowError as exc:
            log.error("%s: no answer within %g s", handler.__name__, limits.HANDLER_DEADLINE)
            raise failure(errno.EIO) from exc
        except Exception as exc:  # the last fence before the kernel
            log.exception("%s: a defect of imgvol", handler.__name__)
            raise failure(errno.EIO) from exc

    return guard


def failure(code: int) -> pyfuse3.FUSEError:
    """The error that answers a request."""
    return pyfuse3.FUSEError(code)

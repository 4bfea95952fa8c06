"""What every call goes through, whatever it asks for: the gate, counts, a line in the log, errors.

Runs in asyncio. Nothing of a request is logged but its method: requests have logins in them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext

from imgvol.api.cri.bridge import Bridge
from imgvol.api.cri.handlers import Method
from imgvol.api.cri.problems import status_of
from imgvol.api.cri.tallies import CallTallies
from imgvol.api.problems import as_imgvol_error
from imgvol.errors import ImgvolError, InternalError, InvalidArgument

log = logging.getLogger(__name__)

T = TypeVar("T")

# What metrics call the methods that we do not have: a client can make up as many as it likes.
OTHER: Final = "other"
# kubelets and their tests know this text from containerd.
NOT_YET: Final = "server is not initialized yet"
NOT_ANY_MORE: Final = "the daemon is stopping"


class Refused(Exception):
    """A call that ends for a reason that is not in it."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Calls(grpc.GenericRpcHandler):
    """Gives gRPC a handler for each call.

    Args:
        methods: What there is.
        bridge: To where the work is done.
        tallies: Counts of calls.

    Attributes:
        closed: Why no call is let through; None: they are. Any thread may set it.
    """

    def __init__(self, methods: Mapping[str, Method], bridge: Bridge, tallies: CallTallies) -> None:
        self._methods = methods
        self._bridge = bridge
        self._tallies = tallies
        self.closed: str | None = NOT_YET

    async def end(self, seconds: float) -> None:
        """Refuses new calls, and ends those in progress after so long; in asyncio."""
        self.closed = NOT_ANY_MORE
        await self._bridge.drain(seconds, Refused(grpc.StatusCode.UNAVAILABLE, NOT_ANY_MORE))

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """The handler for a path; gRPC's interface. Messages go through as bytes."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            # Takes no message: whatever the client would send, the answer is known.
            return grpc.stream_unary_rpc_method_handler(self._refuse)
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, method))

    async def _answer(
        self, method: Method, raw: bytes, context: ServicerContext[Any, Any]
    ) -> bytes:
        async def answer() -> bytes:
            (message,) = method.encode(await self._work(method, raw))
            return message.SerializeToString()

        return await self._conduct(method.name, context, answer)

    async def _stream(self, method: Method, raw: bytes, context: ServicerContext[Any, Any]) -> None:
        async def answer() -> None:
            for message in method.encode(await self._work(method, raw)):
                await context.write(message.SerializeToString())

        await self._conduct(method.name, context, answer)

    async def _refuse(
        self,
        messages: object,  # noqa: ARG002 - gRPC gives them, and nobody reads them
        context: ServicerContext[Any, Any],
    ) -> bytes:
        async def answer() -> bytes:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "imgvol has no such method")

        return await self._conduct(OTHER, context, answer)

    async def _work(self, method: Method, raw: bytes) -> Any:
        request = parse_request(method, raw)
        return await self._bridge.call(partial(method.work, request))

    async def _conduct(
        self, name: str, context: ServicerContext[Any, Any], answer: Callable[[], Awaitable[T]]
    ) -> T:
        """Runs one call; every call is in here, once."""
        began = self._tallies.begin(name)
        code = grpc.StatusCode.OK
        try:
            if self.closed is not None:
                raise Refused(grpc.StatusCode.UNAVAILABLE, self.closed)
            return await answer()
        except asyncio.CancelledError:
            code = _cancellation(context)
            raise
        except Exception as exc:  # noqa: BLE001 - the edge: all of them are mapped
            code, text = _status(name, exc)
        finally:
            seconds = self._tallies.end(name, began, code.name)
            log.debug("%s: %s after %.1f ms", name, code.name, seconds * 1000)
        await context.abort(code, text)
        raise AssertionError("abort raises")


def parse_request(method: Method, raw: bytes) -> Message:
    """A request; fields that we do not know are ignored.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return method.request.FromString(raw)
    except DecodeError:
        raise InvalidArgument(
            "the request cannot be read", method=method.name, size=len(raw)
        ) from None


def _status(name: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Refused):
        return error.code, error.text
    ours: ImgvolError = as_imgvol_error(error)
    if isinstance(ours, InternalError):
        log.error("%s failed", name, exc_info=error)
    else:
        log.info("%s: %s", name, ours)
    return status_of(ours)


def _cancellation(context: ServicerContext[Any, Any]) -> grpc.StatusCode:
    """Which of the two it was, for the counts: the client knows by itself."""
    left = context.time_remaining()
    # The stubs know no call without a deadline; it has None.
    is_late = left is not None and left <= 0  # type: ignore[redundant-expr] # see above
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED

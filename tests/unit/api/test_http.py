"""One connection: limits, deadlines, malformed input, and peers that go away."""

import contextlib
import json
import logging
import math
import socket

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.api.http import (
    NDJSON,
    OCTETS,
    Activity,
    Deadlines,
    Response,
    Stream,
    json_response,
    serve_connection,
)
from imgvol.api.problems import RequestError
from imgvol.errors import InternalError, NotFound

QUICK = Deadlines(idle=0.3, request=0.3, write=0.3)
PATIENT = Deadlines(idle=20, request=20, write=20)
GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


async def echo(request):
    return json_response({"path": request.path, "query": request.query, "body": len(request.body)})


class Peer:
    """The client's end, with the server's task beside it."""

    def __init__(self, stream, activity, finished):
        self.stream = stream
        self.activity = activity
        self.finished = finished

    async def ask(self, data):
        await self.stream.send_all(data)
        return await self.answer()

    async def answer(self):
        """Read one answer with a declared length: its status and its body."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await self.stream.receive_some()
            assert piece, f"closed after {data!r}"
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += await self.stream.receive_some(length - len(body))
        assert len(body) == length
        return int(head.split()[1]), json.loads(body)

    async def rest(self):
        data = b""
        with contextlib.suppress(trio.BrokenResourceError):
            while piece := await self.stream.receive_some():
                data += piece
        return data


@contextlib.asynccontextmanager
async def connected(dispatch=echo, deadlines=PATIENT):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    activity, finished = Activity(), trio.Event()

    async def serve():
        await serve_connection(server, dispatch, deadlines, activity)
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with client:
            with trio.fail_after(10):
                yield Peer(client, activity, finished)
        with trio.fail_after(10):
            await finished.wait()


async def test_answers_and_keeps_the_connection_for_the_next_request():
    async with connected() as peer:
        for number in range(3):
            status, body = await peer.ask(b"GET /a?n=%d HTTP/1.1\r\nhost: h\r\n\r\n" % number)
            assert (status, body["path"], body["query"]) == (200, "/a", f"n={number}")


async def test_pipelined_requests_are_answered_in_order():
    async with connected() as peer:
        requests = [b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % n for n in range(40)]
        last = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
        await peer.stream.send_all(b"".join(requests) + last)
        answers = await peer.rest()
        positions = [answers.find(b'"path":"/%d"' % n) for n in range(40)]
        assert positions == sorted(positions)
        assert -1 not in positions
        assert b'"path":"/last"' in answers


async def test_a_flood_of_pipelined_bytes_is_not_buffered_while_a_handler_runs():
    async def slow(request):
        await trio.sleep(0.5)
        return await echo(request)

    async with connected(slow) as peer:
        await peer.stream.send_all(GET)
        sent = 0
        with trio.move_on_after(0.4):
            while True:
                await peer.stream.send_all(GET * 100)
                sent += len(GET) * 100
        # The socket's buffers and our bound, not whatever the peer likes to send.
        assert sent < 4 * limits.MIB
        peer.stream.socket.close()


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_requests_may_arrive_in_pieces(size):
    async with connected() as peer:
        request = b"POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nabcde"
        for start in range(0, len(request), size):
            await peer.stream.send_all(request[start : start + size])
            await trio.lowlevel.checkpoint()
        assert await peer.answer() == (200, {"path": "/p", "query": "", "body": 5})


async def test_chunked_bodies_and_expect_continue():
    async with connected() as peer:
        head = b"POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n"
        await peer.stream.send_all(head + b"expect: 100-continue\r\n\r\n")
        assert (await peer.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        status, body = await peer.ask(b"3\r\nabc\r\n0\r\n\r\n")
        assert (status, body["body"]) == (200, 3)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET /x HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: h\r\nx: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: h\r\n\r\n", 431),
        (b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2000000\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", 400),
    ],
)
async def test_bad_requests_are_answered_and_the_connection_closed(data, status):
    async with connected() as peer:
        got, body = await peer.ask(data)
        assert got == status
        assert body["error"]["code"] == "invalid-request"
        assert await peer.rest() == b""


async def test_a_chunked_body_past_the_limit_is_refused_while_it_is_sent():
    async with connected() as peer:
        await peer.stream.send_all(
            b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(18):
                await peer.stream.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")
        status, _ = await peer.answer()
        assert status == 413


async def test_a_head_that_takes_too_long_gets_408():
    async with connected(deadlines=QUICK) as peer:
        status, _ = await peer.ask(b"GET /x HTTP/1.1\r\nhost")
        assert status == 408
        assert await peer.rest() == b""


async def test_a_body_that_drips_does_not_extend_the_deadline():
    async with connected(deadlines=QUICK) as peer:
        await peer.stream.send_all(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 99\r\n\r\n")
        async with trio.open_nursery() as nursery:

            async def drip():
                with contextlib.suppress(trio.BrokenResourceError):
                    while True:
                        await peer.stream.send_all(b"x")
                        await trio.sleep(0.05)

            nursery.start_soon(drip)
            assert (await peer.answer())[0] == 408
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed():
    async with connected(deadlines=QUICK) as peer:
        await peer.ask(GET)
        assert await peer.rest() == b""


async def test_a_client_that_closes_cancels_the_handler():
    cancelled = trio.Event()

    async def hang(_request):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with connected(hang) as peer:
        await peer.stream.send_all(GET)
        while not peer.activity.requests:
            await trio.sleep(0.01)
        await peer.stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()
            await peer.finished.wait()
        assert peer.activity.requests == 0


async def test_a_client_that_closes_only_its_sending_side_is_answered():
    async def slow(request):
        await trio.sleep(0.6)
        return await echo(request)

    async with connected(slow) as peer:
        await peer.stream.send_all(GET)
        await peer.stream.send_eof()
        status, _ = await peer.answer()
        assert status == 200


async def test_a_half_closed_client_that_then_goes_cancels_the_handler():
    cancelled = trio.Event()

    async def hang(_request):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with connected(hang) as peer:
        await peer.stream.send_all(GET)
        await peer.stream.send_eof()
        await trio.sleep(0.1)
        assert not cancelled.is_set()
        await peer.stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()


async def test_a_client_that_does_not_read_is_dropped():
    async def produce(send):
        while True:
            await send(bytes(65536))

    async def dispatch(_request):
        return Stream(media_type=OCTETS, produce=produce)

    async with connected(dispatch, QUICK) as peer:
        await peer.stream.send_all(GET)
        with trio.fail_after(5):
            await peer.finished.wait()


async def test_an_error_of_ours_becomes_its_status_and_document():
    async def fail(_request):
        raise NotFound("no such image", hint="Pull it.", image="x", raw=b"\xff", got=math.inf)

    async with connected(fail) as peer:
        status, body = await peer.ask(GET)
        assert status == 404
        assert body["error"] == {
            "code": "not-found",
            "message": "no such image",
            "hint": "Pull it.",
            "retryable": False,
            "fields": {"image": "x", "raw": "\\xff", "got": "inf"},
        }
        assert (await peer.ask(GET))[0] == 404  # the connection lives


async def test_a_defect_gives_500_one_log_line_and_no_secret(caplog):
    async def fail(_request):
        raise ZeroDivisionError("token=hunter2")

    async with connected(fail) as peer:
        with caplog.at_level(logging.DEBUG, logger="imgvol"):
            status, body = await peer.ask(b"GET /x?image=private HTTP/1.1\r\nhost: h\r\n\r\n")
        assert status == 500
        assert body["error"]["code"] == "internal-error"
        assert "hunter2" not in json.dumps(body)
        assert len(caplog.records) == 1
        assert (await peer.ask(GET))[0] == 500  # lives on
    first = caplog.records[0]
    assert first.levelno == logging.ERROR
    assert first.exc_info is not None
    assert "private" not in first.getMessage()


async def test_a_group_of_one_error_is_that_error():
    async def fail(_request):
        async with trio.open_nursery():
            raise NotFound("no such image")

    async with connected(fail) as peer:
        assert (await peer.ask(GET))[0] == 404


async def test_a_stream_that_fails_before_its_first_piece_has_a_status():
    async def produce(_send):
        raise NotFound("no such image")

    async def dispatch(_request):
        return Stream(media_type=NDJSON, produce=produce)

    async with connected(dispatch) as peer:
        assert (await peer.ask(GET))[0] == 404
        assert (await peer.ask(GET))[0] == 404


async def test_ndjson_that_fails_later_ends_with_an_error_line():
    async def produce(send):
        await send(b'{"event":"progress"}\n')
        raise NotFound("no such image")

    async def dispatch(_request):
        return Stream(media_type=NDJSON, produce=produce)

    async with connected(dispatch) as peer:
        await peer.stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'{"event":"error","error":{"code":"not-found"' in answer
        assert answer.endswith(b"0\r\n\r\n")


async def test_octets_that_fail_later_lack_their_last_chunk():
    async def produce(send):
        await send(b"half of it")
        raise NotFound("gone")

    async def dispatch(_request):
        return Stream(media_type=OCTETS, produce=produce)

    async with connected(dispatch) as peer:
        await peer.stream.send_all(GET)
        answer = await peer.rest()
        assert b"half of it" in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_an_empty_stream_is_a_whole_answer():
    async def produce(_send):
        pass

    async def dispatch(_request):
        return Stream(media_type=OCTETS, produce=produce)

    async with connected(dispatch) as peer:
        await peer.stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"0\r\n\r\n")


async def test_what_comes_after_an_answer_comes_after_it():
    order = []

    async def dispatch(_request):
        return Response(body=b"{}", after=lambda: order.append("after"))

    async with connected(dispatch) as peer:
        await peer.ask(GET)
        await peer.ask(GET)
        assert order[0] == "after"


async def test_head_and_connect_do_not_confuse_the_connection():
    async with connected() as peer:
        await peer.stream.send_all(b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n" + GET)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2:
            data += await peer.stream.receive_some()
        assert data.count(b'"path"') == 1
    async with connected() as peer:
        status, _ = await peer.ask(b"CONNECT a:1 HTTP/1.1\r\nhost: h\r\n\r\n")
        assert status == 405


async def test_an_error_brings_the_headers_that_http_wants_with_it():
    async def dispatch(request):
        raise RequestError(405, "no", headers=(("allow", "GET, PUT"),))

    async with connected(dispatch) as peer:
        await peer.stream.send_all(GET)
        head = b""
        while b"\r\n\r\n" not in head:
            head += await peer.stream.receive_some()
        assert b"\r\nallow: GET, PUT\r\n" in head


async def test_http_1_0_is_answered_and_closed():
    async with connected() as peer:
        status, _ = await peer.ask(b"GET /x HTTP/1.0\r\n\r\n")
        assert status == 200
        assert await peer.rest() == b""


async def test_internal_errors_of_ours_are_logged_too(caplog):
    async def fail(_request):
        raise InternalError("impossible")

    async with connected(fail) as peer:
        assert (await peer.ask(GET))[0] == 500
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


PIECES = st.sampled_from(
    [
        b"GET /x HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"host: h\r\n",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"connection: close\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\x00",
    ]
)


@settings(max_examples=40)
@given(st.lists(PIECES | st.binary(max_size=8), max_size=12))
async def test_whatever_is_sent_the_connection_ends_well(pieces):
    """No exception, no hang, and every answer is a good one or says what is wrong."""
    async with connected(deadlines=Deadlines(idle=5, request=5, write=5)) as peer:
        with contextlib.suppress(trio.BrokenResourceError):
            for piece in pieces:
                if piece:
                    await peer.stream.send_all(piece)
            await peer.stream.send_eof()
        answers = await peer.rest()
        for head in answers.split(b"HTTP/1.1 ")[1:]:
            assert head[:3] in {b"100", b"200", b"400", b"405", b"413", b"501"}

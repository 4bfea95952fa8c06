"""FSErrors are made in one place, and every handler is guarded: read off the source.

What the guard counts is tried with handlers of our own.
"""

import ast
import contextlib
import errno
import inspect
import logging
import weakref
from pathlib import Path

import pytest
import trio

import imgvol
from imgvol.errors import NotFound, RegistryUnavailable
from imgvol.fs import guard
from imgvol.fs.replies import FSError
from imgvol.tallies import RequestTallies, Result

SOURCE = Path(imgvol.__file__).parent


def makers_of(error):
    return {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == error
    }


def test_errors_are_made_in_the_guard_only():
    assert makers_of("FSError") == {"fs/guard.py"}


def test_errors_are_translated_for_pyfuse3_in_one_place():
    assert makers_of("FUSEError") == {"fs/pyfuse3_transport.py"}


def methods_of(module, name):
    """Name of each method of a class, with its decorators."""
    tree = ast.parse((SOURCE / module).read_text())
    (found,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    functions = [n for n in found.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f.name: [ast.unparse(d) for d in f.decorator_list] for f in functions}


def test_every_handler_is_guarded():
    guards = methods_of("fs/operations.py", "Operations")
    handlers = {name: each for name, each in guards.items() if not name.startswith("_")}
    assert len(handlers) >= 9
    # What may wait for a registry has a deadline of its own.
    assert handlers.pop("read") == ["guarded_for(_read_deadline)"]
    assert handlers.pop("settle") == ["guarded_for(_settle_deadline)"]
    assert handlers.pop("read_now") == ["guarded_attempt('read')"]
    # Parts of an open; what the last one raises is answered by who awaits it: test_kernel_opens.py.
    for part in ("has_backing_file", "is_large", "is_sound", "is_settled"):
        assert handlers.pop(part) == ["guarded_part"]
    assert handlers.pop("backing_file") == []
    assert all(decorators == ["guarded"] for decorators in handlers.values()), handlers


def test_all_that_pyfuse3_calls_is_translated():
    methods = methods_of("fs/pyfuse3_transport.py", "Adaptor")
    assert methods.pop("__init__") == []
    assert len(methods) >= 13
    assert all(decorators == ["_translated"] for decorators in methods.values()), methods


ENDS = [
    (None, Result.OK),
    (errno.ENODATA, Result.REFUSED),
    (NotFound("no such thing"), Result.REFUSED),
    (RegistryUnavailable("gone"), Result.FAILED),
    (KeyError("defect"), Result.DEFECT),
]


def end_as(failure):
    if isinstance(failure, int):
        raise guard.failure(failure)
    if failure is not None:
        raise failure


def check_one_request(requests, result):
    (counts,) = requests.snapshot().operations
    assert counts.operation == "handler"
    assert counts.in_progress == 0
    assert counts.results[result] == sum(counts.results) == 1


def name_of(value):
    return value.name if isinstance(value, Result) else repr(value)


@pytest.mark.parametrize(("failure", "result"), ENDS, ids=name_of)
def test_every_end_of_a_request_is_counted(failure, result, caplog):
    caplog.set_level(logging.CRITICAL)

    class Operations:
        requests = RequestTallies()

        @guard.guarded
        def handler(self):
            end_as(failure)

    with contextlib.nullcontext() if failure is None else pytest.raises(FSError):
        Operations().handler()
    check_one_request(Operations.requests, result)


@pytest.mark.parametrize(
    ("failure", "result"), [*ENDS, (trio.TooSlowError(), Result.LATE)], ids=name_of
)
async def test_every_end_of_a_request_that_waits_is_counted(failure, result, caplog):
    caplog.set_level(logging.CRITICAL)

    class Operations:
        requests = RequestTallies()

        @guard.guarded_for(lambda _: 30.0)
        async def handler(self):
            end_as(failure)

    with contextlib.nullcontext() if failure is None else pytest.raises(FSError):
        await Operations().handler()
    check_one_request(Operations.requests, result)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errno.ENODATA, errno.ENODATA),
        (NotFound("no such thing"), errno.ENOENT),
        (RegistryUnavailable("gone"), errno.EIO),
        (KeyError("defect"), errno.EIO),
    ],
    ids=name_of,
)
def test_callers_are_told_one_errno(failure, code, caplog):
    caplog.set_level(logging.CRITICAL)

    class Operations:
        requests = RequestTallies()

        @guard.guarded
        def handler(self):
            end_as(failure)

    with pytest.raises(FSError) as caught:
        Operations().handler()
    assert caught.value.errno == code


@pytest.mark.parametrize(("failure", "result"), ENDS, ids=name_of)
def test_an_attempt_counts_as_what_it_attempts(failure, result, caplog):
    caplog.set_level(logging.CRITICAL)

    class Operations:
        requests = RequestTallies()

        @guard.guarded_attempt("handler")
        def handler_now(self):
            end_as(failure)
            return b""

    with contextlib.nullcontext() if failure is None else pytest.raises(FSError):
        Operations().handler_now()
    check_one_request(Operations.requests, result)


def test_an_attempt_that_leaves_the_request_to_another_is_none():
    class Operations:
        requests = RequestTallies()

        @guard.guarded_attempt("handler")
        def handler_now(self):
            return None

    assert Operations().handler_now() is None
    assert not Operations.requests.snapshot().operations


async def test_late_and_cancelled_requests_are_not_in_progress_any_more(caplog):
    caplog.set_level(logging.CRITICAL)

    class Operations:
        requests = RequestTallies()

        @guard.guarded_for(lambda _: 0.05)
        async def handler(self):
            await trio.sleep_forever()

    with pytest.raises(FSError):
        await Operations().handler()
    with trio.move_on_after(0.01):
        await Operations().handler()
    (counts,) = Operations.requests.snapshot().operations
    assert counts.in_progress == 0
    assert counts.results[Result.LATE] == counts.results[Result.CANCELLED] == 1


class Thing:
    """Something that a request has: a layer, say, with its files."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("failure", [RegistryUnavailable("gone"), KeyError("defect")], ids=name_of)
@pytest.mark.parametrize("kind", ["guarded", "guarded_attempt", "guarded_part", "guarded_for"])
async def test_what_a_failed_request_had_goes_with_it(kind, failure, caplog):
    caplog.set_level(logging.CRITICAL)
    things = []

    def fail():
        thing = Thing()
        things.append(weakref.ref(thing))
        raise type(failure)(*failure.args)

    class Operations:
        requests = RequestTallies()

        def handler(self):
            fail()

        async def waiting(self):
            fail()

    wrapped = {
        "guarded": lambda: guard.guarded(Operations.handler),
        "guarded_attempt": lambda: guard.guarded_attempt("read")(Operations.handler),
        "guarded_part": lambda: guard.guarded_part(Operations.handler),
        "guarded_for": lambda: guard.guarded_for(lambda _: 30.0)(Operations.waiting),
    }[kind]()
    with contextlib.suppress(FSError):
        answer = wrapped(Operations())
        if inspect.isawaitable(answer):
            await answer
    assert [thing() for thing in things] == [None]

"""FUSEErrors are made in one place, and every handler is guarded: read off the source.

What the guard counts is tried with handlers of our own.
"""

import ast
import errno
import logging
from pathlib import Path

import pytest
import trio

import imgvol
from imgvol import limits
from imgvol.errors import NotFound, RegistryUnavailable
from imgvol.tallies import RequestTallies, Result

SOURCE = Path(imgvol.__file__).parent


def test_fuse_errors_are_made_in_the_guard_only():
    makers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("FUSEError")
    }
    assert makers == {"fs/guard.py"}


def test_every_handler_is_guarded():
    tree = ast.parse((SOURCE / "fs/operations.py").read_text())
    (operations,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Operations"
    ]
    handlers = [node for node in operations.body if isinstance(node, ast.AsyncFunctionDef)]
    assert len(handlers) >= 13
    guards = {h.name: [ast.unparse(d) for d in h.decorator_list] for h in handlers}
    # What may wait for a registry has a deadline of its own.
    assert guards.pop("read") == ["guarded_for(_read_deadline)"]
    assert all(decorators == ["guarded"] for decorators in guards.values()), guards


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (None, Result.OK),
        (errno.ENODATA, Result.REFUSED),
        (NotFound("no such thing"), Result.REFUSED),
        (RegistryUnavailable("gone"), Result.FAILED),
        (trio.TooSlowError(), Result.LATE),
        (KeyError("defect"), Result.DEFECT),
    ],
    ids=lambda value: value.name if isinstance(value, Result) else repr(value),
)
async def test_every_end_of_a_request_is_counted(failure, result, caplog):
    caplog.set_level(logging.CRITICAL)
    pyfuse3 = pytest.importorskip("pyfuse3")
    guard = pytest.importorskip("imgvol.fs.guard")

    class Operations:
        requests = RequestTallies()

        @guard.guarded
        async def read(self):
            if isinstance(failure, int):
                raise guard.failure(failure)
            if failure is not None:
                raise failure

    if failure is None:
        await Operations().read()
    else:
        with pytest.raises(pyfuse3.FUSEError):
            await Operations().read()
    (counts,) = Operations.requests.snapshot().operations
    assert counts.operation == "read"
    assert counts.in_progress == 0
    assert counts.results[result] == sum(counts.results) == 1


async def test_late_and_cancelled_requests_are_not_in_progress_any_more(caplog, monkeypatch):
    caplog.set_level(logging.CRITICAL)
    pyfuse3 = pytest.importorskip("pyfuse3")
    guard = pytest.importorskip("imgvol.fs.guard")
    monkeypatch.setattr(limits, "HANDLER_DEADLINE", 0.05)

    class Operations:
        requests = RequestTallies()

        @guard.guarded
        async def read(self):
            await trio.sleep_forever()

    with pytest.raises(pyfuse3.FUSEError):
        await Operations().read()
    with trio.move_on_after(0.01):
        await Operations().read()
    (counts,) = Operations.requests.snapshot().operations
    assert counts.in_progress == 0
    assert counts.results[Result.LATE] == counts.results[Result.CANCELLED] == 1

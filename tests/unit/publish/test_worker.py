"""The helper process: what it may know, how it fails, and that it ends when it has to."""

import os
import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from imgvol.errors import (
    DigestMismatch,
    InternalError,
    LocalError,
    RegistryUnavailable,
    StoreFull,
)
from imgvol.publish import worker
from imgvol.publish.worker import run_worker
from imgvol.sources.base import BlobReader

TESTS = str(Path(__file__).parents[2])


class Reader(BlobReader):
    """Gives some pieces, then ends, fails, or waits until it is cancelled."""

    def __init__(self, pieces=(), *, then=None) -> None:
        self.pieces, self.then = pieces, then
        self.cancelled = threading.Event()
        self.is_closed = False

    def iter_pieces(self):
        yield from self.pieces
        if self.then == "wait":
            self.cancelled.wait(60)
            raise RegistryUnavailable("cancelled")
        if self.then is not None:
            raise self.then

    def cancel(self):
        self.cancelled.set()

    def close(self):
        self.is_closed = True


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "_PROGRAM", "support.worker_jobs")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{path}")
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")

    def start(what, reader=None, progress=lambda _: None):
        return run_worker(
            "test",
            {"do": what},
            source=None if reader is None else (lambda: reader),
            output_directory=tmp_path,
            progress=progress,
            limiter=trio.CapacityLimiter(1),
        )

    return start


async def test_a_job_reads_the_source_writes_files_and_knows_nothing_else(run, tmp_path):
    reader = Reader([b"x" * 100_000] * 30)
    seen = []
    result = await run("count", reader, seen.append)
    assert result["size"] == 3_000_000
    assert (tmp_path / "made").read_text() == "3000000"
    assert reader.is_closed
    assert seen == sorted(seen)
    assert seen
    assert result["nice"] >= 10 or os.nice(0) > 9
    assert "REGISTRY_PASSWORD" not in result["environment"]
    # Its three, and the directory that it lists.
    assert len(result["descriptors"]) <= 4
    assert result["pipes"] == 2


async def test_an_error_of_the_job_is_raised_again_with_its_data(run):
    with pytest.raises(DigestMismatch, match="not it") as caught:
        await run("refuse")
    assert caught.value.hint == "Try another."
    assert caught.value.fields == {"offset": 7, "path": "a\\xff"}


async def test_an_error_of_the_job_ends_a_source_that_goes_on(run):
    reader = Reader([b"x"] * 3, then="wait")
    with pytest.raises(DigestMismatch):
        await run("refuse", reader)
    assert reader.cancelled.is_set()
    assert reader.is_closed


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("defect", InternalError, "by zero"),
        ("full", StoreFull, "No space"),
        ("die", LocalError, "ended .*signal 9"),
        ("exit", InternalError, "status 3.*last words"),
        ("babble", InternalError, "nonsense"),
    ],
)
@pytest.mark.fault("F98")
async def test_each_way_to_fail_is_one_error(run, what, kind, text):
    with pytest.raises(kind, match=text):
        await run(what)


@pytest.mark.fault("F98")
async def test_a_source_that_fails_is_the_error_and_not_the_end_of_the_input(run, tmp_path):
    with pytest.raises(RegistryUnavailable, match="gone"):
        await run("count", Reader([b"x"] * 5, then=RegistryUnavailable("gone")))
    assert not (tmp_path / "made").exists()


@pytest.mark.fault("F98")
async def test_cancelling_ends_the_process_and_the_source(run, tmp_path):
    reader = Reader(then="wait")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run, "hang", reader))
        with trio.fail_after(20):
            while not (tmp_path / "ready").exists():
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert reader.cancelled.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "ready").read_text()), 0)


async def test_cancelling_before_it_begins_starts_nothing(run, tmp_path):
    with trio.CancelScope() as scope:
        scope.cancel()
        await run("count", Reader([b"x"]))
    assert not (tmp_path / "made").exists()

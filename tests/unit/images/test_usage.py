"""What the store takes: as `du` says, from memory, and kept up by a task that never gives up."""

import itertools
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from imgvol.content.store import open_store
from imgvol.errors import LocalError
from imgvol.images import usage
from imgvol.images.collection import Collector
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.usage import UsageMeter
from support import images
from support.programs import require, run
from support.sources import MemorySource

BIG = os.urandom(1_500_000)
SMALL = images.file("small", b"s" * 5000)
ONE = images.Image([images.Layer([images.file("big", BIG), SMALL], "gzip")])
TWO = images.Image([images.Layer([images.file("again", BIG), images.file("other", b"o")], "none")])


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "store") as store:
        yield store


async def pull(store, image, name):
    source = MemorySource(image)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await Puller(store).pull(source, resolved, name, PullProgress())


def du(root: Path, *options: str) -> int:
    require("du")
    return int(run("du", "-s", *options, root).stdout.split()[0])


async def test_it_is_what_du_says(store):
    meter = UsageMeter(store)
    await pull(store, ONE, "one")
    await pull(store, TWO, "two")
    await meter.measure()
    (first,) = meter.filesystem_usage()
    root = store.layout.root
    assert first.mountpoint == str(root)
    assert first.used_bytes == du(root, "--block-size=1")
    assert first.inodes_used == du(root, "--inodes")
    # Both have the large file, which is there once, and holes of sparse files take nothing.
    assert len(BIG) < first.used_bytes < 2 * len(BIG)
    assert first.used_bytes < du(root, "--block-size=1", "--count-links")

    with open(store.layout.ingest / "hole", "wb") as hole:
        hole.truncate(50_000_000)
    await store.records.remove_names(["one"])
    await Collector(store).collect()
    await meter.measure()
    (second,) = meter.filesystem_usage()
    assert second.used_bytes == du(root, "--block-size=1")
    assert second.inodes_used == du(root, "--inodes")
    assert second.timestamp_ns > first.timestamp_ns


async def test_before_the_first_measurement_there_is_nothing_as_of_now(store):
    (before,) = UsageMeter(store).filesystem_usage()
    assert (before.used_bytes, before.inodes_used) == (0, 0)
    assert before.timestamp_ns > 0
    assert Path(before.mountpoint).is_dir()


def watch(monkeypatch, fail=lambda _part: None):
    measured, measure = [], usage._look_at

    def watched(part):
        measured.append(Path(part.path).parent.name)
        fail(part)
        return measure(part)

    monkeypatch.setattr(usage, "_look_at", watched)
    return measured


async def test_what_never_changes_is_measured_once(store, monkeypatch):
    measured = watch(monkeypatch)
    meter = UsageMeter(store)
    await pull(store, ONE, "one")
    await meter.measure()
    assert measured.count("layers") == 1
    measured.clear()
    await pull(store, TWO, "two")
    await meter.measure()
    assert measured.count("layers") == 1
    assert "store" in measured  # the documents, and what is in the making


async def test_measuring_waits_for_no_transaction_and_no_transaction_for_it(store, monkeypatch):
    measured = watch(monkeypatch)
    await pull(store, ONE, "one")
    with trio.fail_after(10):
        async with store._database._turn:
            await UsageMeter(store).measure()
    assert measured.count("layers") == 1


async def test_what_cannot_be_listed_leaves_everything_as_it_was(store, monkeypatch):
    meter = UsageMeter(store)
    await pull(store, ONE, "one")
    await meter.measure()
    before = meter.filesystem_usage()

    def fail(_path):
        raise PermissionError("no luck")

    monkeypatch.setattr(usage.os, "scandir", fail)
    with pytest.raises(LocalError, match="no luck"):
        await meter.measure()
    assert meter.filesystem_usage() == before


@pytest.mark.expects_log("is not measured: .*no luck")
async def test_an_error_of_one_part_keeps_its_last_value_and_time(store, monkeypatch):
    bad = set()

    def fail(part):
        if Path(part.path).name in bad:
            raise PermissionError("no luck")

    measured = watch(monkeypatch, fail)
    meter = UsageMeter(store)
    await pull(store, ONE, "one")
    await meter.measure()
    (before,) = meter.filesystem_usage()
    bad.add("blobs")
    for _ in range(2):
        measured.clear()
        await meter.measure()
        (after,) = meter.filesystem_usage()
        assert "store" in measured
        assert after == before  # the size is still known, and how old that is
    bad.clear()
    await meter.measure()
    assert meter.filesystem_usage()[0].timestamp_ns > before.timestamp_ns


async def test_a_part_that_is_gone_is_forgotten_without_ado(store, monkeypatch):
    meter = UsageMeter(store)
    record = await pull(store, ONE, "one")
    await meter.measure()
    (before,) = meter.filesystem_usage()
    await store.records.remove_names(["one"])
    await Collector(store).collect()
    await meter.measure()
    (after,) = meter.filesystem_usage()
    assert after.used_bytes < before.used_bytes - len(BIG) // 2
    assert not any(record.layers[0].digest.encoded in part.path for part in meter._measures)


@pytest.mark.parametrize(("cost", "pauses"), [(0.0, [10.0, 10.0]), (2.0, [9.6, 9.28]), (60.0, [5])])
async def test_it_measures_every_period_and_less_often_what_takes_long(
    store, monkeypatch, autojump_clock, cost, pauses
):
    times, meter = [], UsageMeter(store)

    async def measure(_self):
        times.append(trio.current_time())
        await trio.sleep(cost)

    monkeypatch.setattr(UsageMeter, "measure", measure)
    with trio.move_on_after(300):
        await meter.run(period=10.0)
    waited = [later - earlier - cost for earlier, later in itertools.pairwise(times)]
    assert waited[: len(pauses)] == pytest.approx(pauses)


@pytest.mark.expects_log("is not measured: no luck")
@pytest.mark.expects_log("a defect")
async def test_it_goes_on_whatever_goes_wrong(store, monkeypatch, autojump_clock):
    errors = [LocalError("no luck"), KeyError("x")]
    done = trio.Event()

    async def measure(_self):
        if errors:
            raise errors.pop(0)
        done.set()
        await trio.sleep_forever()

    monkeypatch.setattr(UsageMeter, "measure", measure)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(UsageMeter(store).run)
        await done.wait()
        nursery.cancel_scope.cancel()

"""Which trace an image's mount follows, and how long traces are kept."""

from dataclasses import replace

import pytest

from imgvol.content.reachability import Thing, ThingKind
from imgvol.content.records.traces import RECORDED, TraceRecord, repository_of
from imgvol.content.store import open_store
from imgvol.images.collection import Collector
from imgvol.oci.digest import Digest
from support.records import image_record


def trace_of(image, *, at=1.0, repository="docker.io/library/x", **changes):
    record = TraceRecord(
        manifest=image.manifest,
        document=Digest.of(str(image.manifest).encode()),
        platform=image.platform,
        repository=repository,
        name="docker.io/library/x:1",
        source=RECORDED,
        files=3,
        read_bytes=100,
        seconds=1.5,
        recorded_at=at,
    )
    return replace(record, **changes)


async def test_an_images_own_trace_comes_before_the_latest_of_its_repository(tmp_path):
    images = [image_record((), name) for name in "abc"]
    async with open_store(tmp_path) as store:
        records = store.records
        old, new = trace_of(images[0], at=1.0), trace_of(images[1], at=2.0)
        for trace in (old, new):
            await records.put_trace(trace)
        repositories = ["docker.io/library/x", "example.com/y"]

        async def found(image, repositories=repositories, platform="linux/amd64"):
            return await records.trace_for(image.manifest, platform, repositories)

        assert await found(images[0]) == old
        assert await found(images[2]) == new
        assert await found(images[2], ["example.com/y"]) is None
        assert await found(images[2], []) is None
        assert await found(images[0], []) == old
        assert await found(images[2], platform="linux/arm64") is None
        again = trace_of(images[0], at=3.0, files=4)
        await records.put_trace(again)
        assert await records.traces() == [again, new]
        assert await found(images[2]) == again
        assert await records.remove_trace(images[0].manifest)
        assert not await records.remove_trace(images[0].manifest)
        assert await found(images[2]) == new


async def test_a_trace_stays_while_an_image_could_use_it(tmp_path):
    first, second = image_record((), "first"), image_record((), "second")
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        trace = trace_of(first)
        await store.put_blob(trace.document, str(first.manifest).encode())
        for image, name in ((first, "docker.io/library/x:1"), (second, "docker.io/library/x:2")):
            for digest in (image.manifest, image.id):
                kind = b"manifest " if digest == image.manifest else b"config "
                await store.put_blob(digest, kind + (b"first" if image is first else b"second"))
            await store.records.add_image(image, name, image.manifest)
        await store.records.put_trace(trace)
        await store.records.remove_names(["docker.io/library/x:1"])
        await collector.collect()
        assert await store.records.image(first.manifest) is None
        assert await store.records.traces() == [trace]
        assert await store.read_blob(trace.document)
        fates = {fate.thing: fate.reasons for fate in await collector.explain()}
        (reason,) = fates[Thing(ThingKind.DOCUMENT, trace.document)]
        assert str(reason) == f"trace of {first.manifest}"

        await store.records.remove_names(["docker.io/library/x:2"])
        report = await collector.collect()
        assert await store.records.traces() == []
        assert Thing(ThingKind.DOCUMENT, trace.document) in report.removed


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("docker.io/library/x:1", "docker.io/library/x"),
        ("h.test:5000/a/b@sha256:" + "0" * 64, "h.test:5000/a/b"),
        ("oci:/srv/layout:1", ""),
        ("docker-archive:/srv/x.tar", ""),
        ("UPPER", ""),
        ("", ""),
    ],
)
def test_repositories_of_names(name, repository):
    assert repository_of(name) == repository

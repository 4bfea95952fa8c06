"""An image service over a store of a test, archives brought into it, and what they leave behind."""

import os
from contextlib import asynccontextmanager

import pytest

from imgvol.content.store import open_store
from imgvol.images.leases import Leases
from imgvol.images.pull import PullProgress
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from support.bundles import Bundle


@asynccontextmanager
async def open_service(root):
    async with open_store(root) as store:
        yield ImageService(store, Views(store), leases=Leases(store.records)), store


async def import_into(root, path, **options):
    async with open_service(root) as (service, store):
        report = await service.importer.import_archive(
            str(path), progress=PullProgress(), **options
        )
        return report, {
            name: image for image in await store.records.images() for name in image.names
        }


def names_of(report):
    return {(name, image.platform) for image in report.images for name in image.names}


def assert_empty(root):
    """No record, no layer, no document, and nothing unfinished."""
    for place in ("ingest", "layers", "places", "lazy", "files/sha256"):
        assert os.listdir(root / place) == []
    assert [name for _, _, names in os.walk(root / "blobs") for name in names] == []


async def refused(tmp_path, bundle, error, match=None, **options):
    tmp_path.mkdir(exist_ok=True)
    path = bundle.write(tmp_path / "bad.tar") if isinstance(bundle, Bundle) else bundle
    with pytest.raises(error, match=match) as caught:
        await import_into(tmp_path / "store", path, **options)
    async with open_service(tmp_path / "store") as (_, store):
        assert await store.records.images() == []
        assert await store.records.layers() == []
    assert_empty(tmp_path / "store")
    return caught.value

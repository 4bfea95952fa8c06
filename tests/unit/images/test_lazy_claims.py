"""What one image claims of a layer that is not proven yet, and what another gets to see."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from imgvol.config import LazyTrust
from imgvol.content.records import Origin
from imgvol.content.store import open_store
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_MANIFEST
from support import images
from support.soci import Draft, draft_of
from support.soci_images import soci_index
from support.sources import MemorySource

LAYER = images.Layer([images.file("motd", b"true" * 5000)])
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


def honest() -> Draft:
    return draft_of(LAYER.tar, LAYER.blob, 4 << 20)


def lying() -> Draft:
    (entry,) = honest().entries
    return replace(honest(), entries=[replace(entry, name=b"evil")])


def source_of(name: str, claim: Draft | None) -> MemorySource:
    """An image of the one layer, with an index that claims something of it."""
    source = MemorySource(images.Image([LAYER], config={"Labels": {"name": name}}))
    if claim is not None:
        ztoc = claim.to_bytes()
        index = soci_index({LAYER.digest: ztoc}, subject=source.manifest)
        source.blobs |= {images.sha256(data): data for data in (ztoc, index)}
        source.referrers = [
            Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(index), size=len(index))
        ]
    return source


@asynccontextmanager
async def open_puller(root):
    async with open_store(root) as store:
        yield Puller(store, trust=LazyTrust(soci_referrers=True))


async def pull(puller: Puller, source: MemorySource, name: str):
    """The state and the record of the layer after a lazy pull."""
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    progress = PullProgress()
    image = await puller.pull(source, resolved, name, progress, ORIGIN)
    return progress.layers[0].state, image.layers[0]


async def test_images_that_claim_the_same_share_an_unproven_layer(tmp_path):
    async with open_puller(tmp_path) as puller:
        state, first = await pull(puller, source_of("a", honest()), "a")
        assert (state, first.format) == ("lazy", "SOCI v1")
        assert await pull(puller, source_of("b", honest()), "b") == ("exists", first)


@pytest.mark.parametrize("claim", [honest(), None], ids=["another", "none"])
async def test_claim_of_another_image_is_not_believed(tmp_path, claim):
    async with open_puller(tmp_path) as puller:
        state, _ = await pull(puller, source_of("a", lying()), "a")
        assert state == "lazy"
        state, layer = await pull(puller, source_of("b", claim), "b")
        assert (state, layer.format, layer.is_complete) == ("done", "tar", True)


async def test_layer_that_is_proven_needs_no_claim(tmp_path):
    async with open_puller(tmp_path) as puller:
        await pull(puller, source_of("a", None), "a")
        state, layer = await pull(puller, source_of("b", lying()), "b")
        assert (state, layer.format) == ("exists", "tar")
        assert await pull(puller, source_of("c", None), "c") == (state, layer)

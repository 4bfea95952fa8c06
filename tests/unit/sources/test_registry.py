import pytest

from imgvol.errors import LimitExceeded, NotFound
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference
from imgvol.sources.registry import RegistrySource

REFERENCE = Reference.parse("example.com/app:v1")


def descriptor(media_type: str, data: bytes | None = None) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(b"x"), size=1, data=data)


class Client:
    """Answers with the name of what it was asked for."""

    def __init__(self):
        self.asked = []

    async def resolve(self, reference):
        self.asked.append(("resolve", reference))
        return descriptor(media_types.OCI_INDEX)

    async def fetch_manifest(self, reference, wanted):
        self.asked.append(("manifest", reference))
        return b"manifest"

    async def fetch_blob(self, reference, wanted, *, max_size):
        self.asked.append(("blob", max_size))
        return b"blob"

    def open_blob(self, reference, wanted, *, offset=0, end=None):
        return (reference, wanted, offset, end)


async def test_each_question_goes_to_the_right_place():
    client = Client()
    source = RegistrySource(client, REFERENCE)
    assert source.describe() == "example.com/app:v1"
    assert (await source.resolve()).media_type == media_types.OCI_INDEX
    for media_type in media_types.ACCEPTED:
        assert await source.read_document(descriptor(media_type), max_size=9) == b"manifest"
    assert await source.read_document(descriptor(media_types.OCI_CONFIG), max_size=9) == b"blob"
    assert client.asked[-1] == ("blob", 9)
    layer = descriptor(media_types.OCI_LAYER)
    assert source.open_blob(layer, offset=7) == (REFERENCE, layer, 7, None)
    assert source.open_blob(layer, offset=7, end=9) == (REFERENCE, layer, 7, 9)
    await source.aclose()


async def test_embedded_data_is_not_fetched():
    client = Client()
    source = RegistrySource(client, REFERENCE)
    config = descriptor(media_types.OCI_CONFIG, b"x")
    assert await source.read_document(config, max_size=9) == b"x"
    assert client.asked == []


async def test_too_large_a_document_is_not_fetched():
    client = Client()
    with pytest.raises(LimitExceeded):
        await RegistrySource(client, REFERENCE).read_document(
            descriptor(media_types.OCI_CONFIG), max_size=0
        )
    assert client.asked == []


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("example.com/app:v1", "example.com/app:v1-beside"),
        ("app", "docker.io/library/app:latest-beside"),
    ],
)
async def test_companion_is_asked_for_by_the_tag_with_its_suffix(named, asked):
    client = Client()
    source = RegistrySource(client, Reference.parse(named))
    assert await source.read_companion("-beside") == b"manifest"
    assert client.asked == [("manifest", Reference.parse(asked))]


@pytest.mark.parametrize(
    "named", [f"app@{Digest.of(b'')}", f"app:v1@{Digest.of(b'')}", f"app:{'x' * 125}"]
)
async def test_image_that_can_have_no_companion_has_none(named):
    client = Client()
    with pytest.raises(NotFound):
        await RegistrySource(client, Reference.parse(named)).read_companion("-beside")
    assert client.asked == []

"""An image on a scripted registry, and how to read it with the client under test."""

import hashlib
import json
import random
from contextlib import asynccontextmanager
from random import Random

import trio

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from imgvol.oci.reference import Reference
from imgvol.registry import Bounds, NoCredentials, RegistryOptions, open_registry_client
from support.scripted_registry import ScriptedServer, respond, serve

# Patience in tenths of seconds: the faults of these tests are over soon, or never.
BOUNDS = Bounds(
    connect_timeout=2,
    read_timeout=0.4,
    document_deadline=2,
    rate_window=0.3,
    retry_first_delay=0.01,
    retry_delay=0.02,
    retry_after=1.5,
)
REPOSITORY = "some/image"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class RemoteImage:
    """A manifest, a config and a layer, and where a registry serves them."""

    def __init__(self, size: int = 300_000):
        self.layer = random.Random(size).randbytes(size)
        self.config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": describe(self.config, OCI_CONFIG).to_json(),
                "layers": [describe(self.layer, OCI_LAYER).to_json()],
            }
        ).encode()
        self.descriptor = describe(self.manifest, OCI_MANIFEST)
        self.layer_descriptor = describe(self.layer, OCI_LAYER)
        self.config_descriptor = describe(self.config, OCI_CONFIG)

    @property
    def layer_path(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self.layer_descriptor.digest}"

    @property
    def config_path(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self.config_descriptor.digest}"

    def manifest_path(self, name: object = "v1") -> str:
        return f"/v2/{REPOSITORY}/manifests/{name}"

    def manifest_answer(self, **headers):
        known = {
            "Content_Type": OCI_MANIFEST,
            "Docker_Content_Digest": str(self.descriptor.digest),
        }
        return respond(200, self.manifest, **(known | headers))

    def install(self, server: ScriptedServer) -> None:
        for name in ("v1", self.descriptor.digest):
            for method in ("GET", "HEAD"):
                server.on(method, self.manifest_path(name), self.manifest_answer())
        server.on("GET", self.layer_path, serve(self.layer))
        server.on("GET", self.config_path, serve(self.config))


def describe(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def reference(server: ScriptedServer, tag: str | None = "v1") -> Reference:
    return Reference(server.domain, REPOSITORY, tag)


@asynccontextmanager
async def client_of(server, *, options=None, credentials=None, bounds=BOUNDS, environ=None):
    async with open_registry_client(
        server.domain,
        options or RegistryOptions(),
        credentials or NoCredentials(),
        bounds=bounds,
        environ=environ or {},
        random=Random(1),
    ) as client:
        yield client


async def read_blob(client, server, descriptor, **part) -> bytes:
    """All that a reader gives, received in a thread."""

    def read() -> bytes:
        with client.open_blob(reference(server), descriptor, **part) as reader:
            return b"".join(reader.iter_pieces())

    return await trio.to_thread.run_sync(read)

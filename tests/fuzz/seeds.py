"""Good bytes for every parser, small enough that a random change hits what matters."""

import base64
import functools
import gzip
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import zstandard

from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.content.chunk_catalogue import ChunkOwners, catalogue_bytes
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy import estargz
from imgvol.layers.lazy.chunks import ChunkTable
from imgvol.layers.lazy.soci_twin import compress_ztoc
from imgvol.layers.lazy.spans import unseal
from imgvol.layers.lazy.zstd_chunked import CONTAINERS, STARGZ
from support import frames, images, soci, tars
from support.fuse_requests import samples as fuse_samples
from support.stargz import Stargz
from support.toc_blobs import Body, chunked_blob, legacy_footer, sha256, stargz_blob

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lazy"
DIGEST = "sha256:" + "5" * 64


@functools.cache
def body(compression: Compression) -> Body:
    made = Body(compression)
    made.entry("dir", "etc/", mode=0o755, modtime="2023-01-01T00:00:00Z")
    made.file("etc/a", b"alpha", xattrs={"user.x": "eA=="}, uid=7)
    made.chunks("etc/b", b"one", b"", b"two")
    # Two files in one span, and every field that there is.
    offset = made.span(b"headerpackedheadertoo")
    for name, content, inner in (("etc/e", b"packed", 6), ("etc/f", b"too", 18)):
        place = {"offset": offset, "innerOffset": inner, "endOffset": len(made.data)}
        known = {"chunkDigest": sha256(content), "userName": "u", "groupName": "g", "gid": 3}
        made.entry("reg", name, size=len(content), NumLink=1, **place, **known)
    made.entry("hardlink", "etc/c", linkName="etc/a", accesstime="2023-01-01T00:00:00Z")
    made.entry("symlink", "etc/d", linkName="c")
    made.entry("char", "null", devMajor=1, devMinor=3)
    made.entry("reg", "etc/.wh.gone")
    made.file(".prefetch.landmark", b"\x0f")
    return made


TOC_DIGEST = sha256(body(Compression.GZIP).toc)


@functools.cache
def archives() -> Sequence[bytes]:
    entries = [
        images.directory("etc", uid=7),
        images.file("etc/a", b"alpha", xattrs={"user.x": b"y"}),
        images.hardlink("etc/b", "etc/a"),
        images.symlink("etc/c", "a"),
        images.character_device("null", 1, 3),
        images.fifo("pipe"),
        images.whiteout("etc/gone"),
        images.opaque("etc"),
    ]
    holes = [(512, b"x" * 512), (4096, b"y" * 100)]
    archives = [images.tar_bytes(entries)]
    archives += [
        images.tar_bytes([images.sparse("s", 8192, holes, form=form)])
        for form in ("old", "0.1", "1.0")
    ]
    long = tars.special(b"L", b"n" * 200 + b"\0") + tars.special(b"K", b"t" * 200 + b"\0")
    archives.append(long + tars.header(b"n", b"2", linkname=b"t", magic=tars.GNU) + tars.END)
    return archives


def plain() -> Sequence[bytes]:
    return [b"", b"a", bytes(100_000), archives()[0] * 3]


def pax_bodies() -> Sequence[bytes]:
    pairs = [
        (b"path", b"a/b"),
        (b"linkpath", b"c"),
        (b"size", b"7"),
        (b"mtime", b"-1.123456789"),
        (b"uid", b"4294967296"),
        (b"SCHILY.xattr.user.x", b"\0\n"),
        (b"GNU.sparse.map", b"0,1,5,2"),
        (b"GNU.sparse.numblocks", b"2"),
        (b"GNU.sparse.size", b"9"),
        (b"GNU.sparse.major", b"1"),
    ]
    return [tars.record(*pair) for pair in pairs] + [b"".join(tars.record(*p) for p in pairs)]


@functools.cache
def zstd_streams() -> Sequence[bytes]:
    def packed(data: bytes, **settings) -> bytes:
        return zstandard.ZstdCompressor(**settings).compress(data)

    long = archives()[0] * 20
    streams = [packed(data) for data in plain()]
    streams += [packed(long, level=19, write_checksum=True), packed(long, write_content_size=False)]
    return [*streams, b"\x50\x2a\x4d\x18\x03\0\0\0abc" + streams[1] + streams[2]]


@functools.cache
def estargz_blobs() -> Sequence[bytes]:
    made = body(Compression.GZIP)
    own = [stargz_blob(made)[0], stargz_blob(made, footer=legacy_footer)[0]]
    return [*own, (FIXTURES / "estargz.blob").read_bytes()]


@functools.cache
def chunked_blobs() -> Sequence[bytes]:
    made = body(Compression.ZSTD)
    return [chunked_blob(made, family)[0] for family in (CONTAINERS, STARGZ)]


def chunked_manifests() -> Sequence[bytes]:
    compressors = (zstandard.ZstdCompressor(), zstandard.ZstdCompressor(level=19))
    return [each.compress(body(Compression.ZSTD).toc) for each in compressors]


@functools.cache
def annotations() -> Sequence[bytes]:
    made = body(Compression.ZSTD)
    known = [chunked_blob(made, family)[1] for family in (CONTAINERS, STARGZ)]
    known += [{estargz.TOC_DIGEST: TOC_DIGEST}, {estargz.TOC_DIGEST: sha256(made.toc)}]
    known.append(json.loads((FIXTURES / "podman.json").read_bytes()))
    return ["\n".join(f"{k}={v}" for k, v in each.items()).encode() for each in known]


@functools.cache
def soci_tar() -> bytes:
    return b"".join(tars.member(b"f%d" % n, b"%d" % n * 300) for n in range(12)) + tars.END


@functools.cache
def soci_blob() -> bytes:
    return gzip.compress(soci_tar(), 6, mtime=0)


@functools.cache
def ztocs() -> Sequence[bytes]:
    """Two whose checkpoints lie last, and are mostly zeros; and one that has next to none."""
    draft = soci.draft_of(soci_tar(), soci_blob(), 4000)
    plain_one = soci.plain_draft_of(soci_tar(), 4096)
    entries = [soci.Entry(b"a", offset=512, size=5, records=((b"SCHILY.xattr.user.x", b"y"),))]
    small = soci.Draft(
        compressed_size=len(soci_blob()),
        uncompressed_size=10_240,
        entries=entries,
        digests=[sha256(b"")],
        checkpoints=bytes(12),
    )
    return [each.to_bytes() for each in (draft, plain_one, small)]


def ztoc_twins() -> Sequence[bytes]:
    return [compress_ztoc(ztocs()[0])]


def gzip_blobs() -> Sequence[bytes]:
    two = gzip.compress(soci_tar()[:9000], 1) + gzip.compress(soci_tar()[9000:], 9)
    return [soci_blob(), two]


@functools.cache
def frame_draft() -> tuple[frames.FrameDraft, bytes]:
    pieces = frames.cut(soci_tar(), 4096)
    packed = [frames.frame(piece, has_checksum=True) for piece in pieces]
    return frames.draft_of(soci_tar(), pieces, packed, frames.seek_table(pieces, packed))


def frame_ztocs() -> Sequence[bytes]:
    return [frame_draft()[0].to_ztoc()]


def frame_documents() -> Sequence[bytes]:
    return [frame_draft()[0].to_bytes()]


@functools.cache
def frame_blobs() -> Sequence[bytes]:
    return [frame_draft()[1], frames.as_pzstd(soci_tar(), 3000)]


def checkpoint_heads() -> Sequence[bytes]:
    points = soci.checkpoints_of(soci_blob(), 4000)
    packed = [struct.pack("<qqB", p.compressed, p.position, p.bits) for p in points]
    return [
        struct.pack("<iq", count, 4 << 20) + b"".join(packed[:count])
        for count in (1, 2, len(packed))
    ]


def _descriptor(media_type: str, **more) -> dict:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def soci_indexes() -> Sequence[bytes]:
    layer = {"com.amazon.soci.image-layer-digest": DIGEST}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("application/vnd.amazon.soci.index.v2+json"),
        "layers": [
            _descriptor("application/octet-stream", annotations=layer),
            _descriptor("application/vnd.amazon.soci.prefetch.v1+json", annotations=layer),
            _descriptor(
                "application/vnd.imgvol.zstd-frames.v1+zstd",
                annotations={"vnd.imgvol.zstd-frames.layer-digest": "sha256:" + "6" * 64},
            ),
        ],
    }
    referrer = {
        **index,
        "config": _descriptor("application/vnd.amazon.soci.index.v1+json"),
        "subject": _descriptor("application/vnd.oci.image.manifest.v1+json"),
    }
    return [json.dumps(each).encode() for each in (index, referrer)]


def prefetch_artifacts() -> Sequence[bytes]:
    spans = [{"start_span": 1, "end_span": 2, "priority": 3}, {"start_span": 0, "end_span": 0}]
    return [json.dumps({"version": "1.0", "prefetch_spans": spans}).encode()]


@functools.cache
def span_tables() -> Sequence[bytes]:
    """Bodies, without the seal, and a sealed one."""
    tables = [body(c).read().table for c in (Compression.GZIP, Compression.ZSTD)]
    tables += [soci.plain_draft_of(soci_tar(), 4096).open().table, frame_draft()[0].open().table]
    stored = [table.to_bytes() for table in tables]
    return [*(unseal(each)[1] for each in stored), stored[0]]


@functools.cache
def layer_indexes() -> Sequence[bytes]:
    made = []
    for archive in archives():
        builder = IndexBuilder()
        for member in tars.parse([archive]):
            builder.add(member)
        made.append(builder.finish())
    return made


@functools.cache
def span_maps() -> Sequence[bytes]:
    bits = b"\xff\x01" + bytes(11) + b"\x0f" + bytes(12)
    return [struct.pack("<8sQI", b"imgvolS2", 100, zlib.crc32(bits)) + bits]


@functools.cache
def chunk_catalogues() -> Sequence[bytes]:
    files = [images.file(f"f{number}", b"x" * (number + 1)) for number in range(9)]
    _, lazy = Stargz(files, chunk=4).opened()
    assert isinstance(lazy.table, ChunkTable)
    owners = ChunkOwners(lazy.table, LayerIndex(lazy.index))
    return [catalogue_bytes(lazy.table, owners)]


def manifests() -> Sequence[bytes]:
    oci = "application/vnd.oci.image"
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["x"]}
    known = [json.loads((FIXTURES / f"{name}.json").read_bytes()) for name in ("podman", "estargz")]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": _descriptor(f"{oci}.config.v1+json", data=base64.b64encode(b"1234567").decode()),
        "layers": [_descriptor(f"{oci}.layer.v1.tar+gzip", annotations=each) for each in known],
        "annotations": {"com.amazon.soci.index-digest": DIGEST},
        "subject": _descriptor(f"{oci}.manifest.v1+json"),
    }
    index = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.index.v1+json",
        "manifests": [_descriptor(f"{oci}.manifest.v1+json", platform=platform, urls=["x"])],
    }
    return [json.dumps(each).encode() for each in (manifest, index)]


def configs() -> Sequence[bytes]:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "variant": "v1",
        "created": "2023-01-01T00:00:00Z",
        "config": {"Env": ["A=b"], "Cmd": ["x"], "User": "1", "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST]},
        "history": [{"created_by": "x", "empty_layer": True}],
    }
    return [json.dumps(config).encode()]


def traces() -> Sequence[bytes]:
    files = [
        {
            "path": "usr/bin/a%0A%FF",
            "size": 9000,
            "first": 3,
            "ranges": [[0, 4096, 4], [8192, 8, 9]],
        },
        {"path": "lib/x.so", "size": 5, "first": 12, "ranges": []},
    ]
    trace = {
        "version": 1,
        "image": DIGEST,
        "platform": "linux/arm/v7",
        "name": "docker.io/library/x:1",
        "seconds": 1.5,
        "files": files,
    }
    return [json.dumps(trace).encode()]


def references() -> Sequence[bytes]:
    texts = [
        "alpine",
        "a.b:5000/c/d:v1",
        f"[::1]:80/x@{DIGEST}",
        DIGEST,
        "localhost/a__b:T@" + DIGEST,
    ]
    return [text.encode() for text in texts]


def arguments() -> Sequence[bytes]:
    texts = ["docker://alpine:3", "oci:/a/b:v1", f"oci:/a@{DIGEST}", "oci-archive:x.tar:1"]
    return [*(text.encode() for text in texts), b"docker-archive:x.tar:alpine:3", *references()]


def platforms() -> Sequence[bytes]:
    return [b"linux/arm/v7", b"windows(10.0+win32k)/amd64", b"arm64", b"linux", b"LINUX/x86_64/v2"]


def challenges() -> Sequence[bytes]:
    bearer = b'Bearer realm="https://a.example/t",service="s",scope="repository:x:pull,push"'
    return [bearer, b'Basic realm="x\\"y", ' + bearer, b"Negotiate abc==\n" + bearer]


def locations() -> Sequence[bytes]:
    return [b"https://cdn.example:8443/a?b=%20c#d", b"../x", b"//other/x", b"http://[::1]/", b"?q"]


def uploads() -> Sequence[bytes]:
    return [each + b"\n0-1048575" for each in locations()] + [b"/u?_state=a%3D\nbytes=0-0", b"u\n"]


def referrers() -> Sequence[bytes]:
    entries = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{letter * 64}",
            "size": 7,
            "artifactType": "application/x.example",
            "annotations": {"key": "value"},
        }
        for letter in "abc"
    ]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    return [json.dumps({**index, "manifests": entries[:n]}).encode() for n in (0, 1, 3)]


def logins() -> Sequence[bytes]:
    login = base64.b64encode(b"user:secret").decode()
    auths = {"https://index.docker.io/v1/": {"auth": login}, "example.com:5000": {"auth": login}}
    auths["example.com:5000/library"] = {"username": "u", "password": "p", "identitytoken": "t"}
    helpers = {"credHelpers": {"example.com:5000": "none"}, "credsStore": "none"}
    return [
        json.dumps(each).encode() for each in ({"auths": auths}, {**helpers, "auths": {}}, auths)
    ]


def cri_requests() -> Sequence[bytes]:
    spec = pb.ImageSpec(image="registry.test/image-1:1", annotations={"a": "b"}, runtime_handler="")
    pod = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", namespace="n", attempt=1))
    requests = (
        pb.ListImagesRequest(filter=pb.ImageFilter(image=spec)),
        pb.ImageStatusRequest(image=spec, verbose=True),
        pb.PullImageRequest(
            image=spec, auth=pb.AuthConfig(username="u", password="p"), sandbox_config=pod
        ),
        pb.PullImageRequest(image=spec, auth=pb.AuthConfig(auth="dTpw", server_address="x")),
        pb.RemoveImageRequest(image=spec),
    )
    return [request.SerializeToString() for request in requests]


def hosts_files() -> Sequence[bytes]:
    return [
        (
            b'server = "https://h.test"\n[host."http://m.test:5000/path"]\n'
            b'capabilities = ["pull"]\n'
            b'ca = ["ca.crt"]\nclient = [["a.cert", "a.key"]]\nskip_verify = true\n'
            b'override_path = true\ndial_timeout = "1m30s"\n'
            b'[host."http://m.test:5000/path".header]\nX-Key = ["a", "b"]\n'
        ),
        b'ca = "ca.crt"\nclient = "both.pem"\n[host."m.test"]\n[host."https://[::1]:5000"]\n',
    ]


def registries_files() -> Sequence[bytes]:
    return [
        (
            b"mirrors:\n  docker.io: &m\n    endpoint: [localhost:5000, 'https://m.test/v2/x']\n"
            b"    rewrite: {'^library/(.*)': 'hub/$1', '/': '-'}\n  '*': *m\n"
            b"configs:\n  h.test:5000:\n    auth: {username: u, password: p}\n"
            b"    tls: {ca_file: /ca.crt, cert_file: a, key_file: b, insecure_skip_verify: true}\n"
            b"  '*': {auth: {auth: dTpw}}\n  docker.io: {auth: {identity_token: t}}\n"
        ),
    ]


def image_lists() -> Sequence[bytes]:
    return [b"# nodes\n\nalpine:3\r\n", b"\n".join(references()), b"\xef\xbb\xbfbusybox"]


def fuse_requests() -> Sequence[bytes]:
    return list(fuse_samples().values())


def preload_caches() -> Sequence[bytes]:
    entry = {"size": 7, "modTime": "2024-05-01T10:00:00Z"}
    more = {**entry, "nanoseconds": 1, "images": ["docker.io/library/app:1"]}
    return [json.dumps({"/images/a.tar": entry, "/images/b.tar": more}).encode(), b""]

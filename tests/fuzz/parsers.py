"""What is fuzzed: each parser with good seeds, and the errors that it may raise.

A parser gets bytes and uses whatever comes out of them as the rest of imgvol would: what only fails
when it is looked at is found, too. `AssertionError` is how it says that what it got makes no sense.
"""

import bz2
import contextlib
import gzip
import logging
import lzma
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import lz4.frame
import trio

from fuzz import seeds
from imgvol import limits
from imgvol.api.cri.calls import parse_request
from imgvol.api.cri.handlers import Handlers
from imgvol.api.cri.messages import image_message
from imgvol.content.chunk_catalogue import ChunkCatalogue
from imgvol.content.span_map import SpanMap
from imgvol.errors import (
    ContentError,
    InvalidArgument,
    InvalidDigest,
    InvalidPlatform,
    InvalidReference,
    NotFound,
    ProtocolError,
    StoreDamaged,
)
from imgvol.fs.kernel.protocol import IN_HEADER
from imgvol.fs.kernel.requests import MalformedRequest
from imgvol.fs.kernel.requests import decode as decode_request
from imgvol.images.preload.cache_file import parse_cache, render_cache
from imgvol.images.preload.lists import parse_list
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression, iter_decoded
from imgvol.layers.header import BLOCK
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.checkpoint_builder import CheckpointBuilder
from imgvol.layers.lazy.checkpoints import WINDOW, inflate_span, parse_checkpoints
from imgvol.layers.lazy.entries import iter_entries
from imgvol.layers.lazy.frame_builder import FrameBuilder
from imgvol.layers.lazy.frames import FrameTable
from imgvol.layers.lazy.locate import NeedTail, TocRange, find_toc, open_layer
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci import SpanRange, open_ztoc
from imgvol.layers.lazy.soci_index import parse_prefetch, parse_soci_index, pinned_index
from imgvol.layers.lazy.soci_twin import compress_ztoc, expand_twin
from imgvol.layers.lazy.spans import Kind, LazyLayer, seal, unseal
from imgvol.layers.lazy.toc import read_toc
from imgvol.layers.lazy.zstd_frames import open_frames
from imgvol.layers.lazy.ztoc import Algorithm
from imgvol.layers.lazy.ztoc_members import MemberCollector
from imgvol.layers.lazy.ztoc_writer import ZtocParts, write_tar_zinfo, write_ztoc
from imgvol.layers.tar import TarParser
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.image_config import parse_image_config
from imgvol.oci.manifest import Index, parse_manifest, select_manifests
from imgvol.oci.media_types import OCI_INDEX, OCI_MANIFEST
from imgvol.oci.platform import Platform, only
from imgvol.oci.reference import Reference, parse_any_reference
from imgvol.registry.challenge import choose_challenge, parse_challenges
from imgvol.registry.config_files import BadKey
from imgvol.registry.credentials import FileCredentials
from imgvol.registry.hosts_file import parse_hosts_file
from imgvol.registry.redirects import Origin, next_hop
from imgvol.registry.referrers import with_referrer, without_referrer
from imgvol.registry.registries_file import RegistriesFile
from imgvol.registry.rewrites import rewrite
from imgvol.registry.tokens import Realm
from imgvol.registry.upload_places import (
    parse_kept,
    parse_smallest_piece,
    upload_location,
    with_digest,
)
from imgvol.sources.packing import Packing, iter_unpacked
from imgvol.sources.parse import parse_image_argument
from imgvol.view.trace import parse_trace
from support import tars
from support.cri import FakeImages, make_image
from support.lazy import describe_lazy, describe_tar, open_lazy
from support.written import FORMATS, write_layer


@dataclass(frozen=True, slots=True)
class Parser:
    """See the module.

    Attributes:
        run: Reads one case to the end.
        seeds: Makes good cases.
        declared: What it may raise.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    declared: tuple[type[Exception], ...] = (ContentError,)


def _cut(data: bytes) -> list[bytes]:
    """The same cut for the same data, for readers that take pieces."""
    chosen = random.Random(len(data))
    places = sorted(chosen.randrange(len(data) + 1) for _ in range(3))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def _preload_cache(data: bytes) -> None:
    cache = parse_cache(data)
    assert parse_cache(render_cache(cache)).keys() <= cache.keys()


def _fuse_request(data: bytes) -> None:
    """As it came, and with the length that it has: else nothing beyond that is reached."""
    if len(data) >= IN_HEADER.size:
        _, *others = IN_HEADER.unpack_from(data, 0)
        decode_request(memoryview(IN_HEADER.pack(len(data), *others) + data[IN_HEADER.size :]))
    decode_request(memoryview(data))


# --- archives and compression ---------------------------------------------------------------------


def _tar(data: bytes) -> None:
    _index(tars.parse(_cut(_with_checksums(data))))


def _pax(data: bytes) -> None:
    head, name = tars.special(b"x", data), tars.member(b"file", b"content")
    _index(tars.parse([head, name, tars.END]))


def _index(members) -> None:
    builder = IndexBuilder(own_files=False)
    for member in members:
        builder.add(member)
    _walk(LayerIndex(builder.finish()))


def _with_checksums(data: bytes) -> bytes:
    """Every block that is nearly a header made one: else nothing beyond checksums is reached."""
    out = bytearray(data)
    for start in range(0, len(out) - BLOCK + 1, BLOCK):
        block = out[start : start + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def _decode(compression: Compression) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for piece in iter_decoded(_cut(data), compression):
            assert 0 < len(piece) <= limits.DECODED_PIECE

    return run


def _unpack(packing: Packing) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for piece in iter_unpacked(_cut(data), packing):
            assert 0 < len(piece) <= limits.DECODED_PIECE

    return run


def _walk(index: LayerIndex) -> None:
    """Everything that an index has to tell."""
    for node in range(index.node_count):
        if index.is_directory(node):
            assert index.path_of(node).startswith(b"/")
            for name, child in index.iter_children(node):
                assert name not in (b"", b".", b"..")
                assert not set(name) & {0, 0x2F}
                assert index.child(node, name) == child
        elif not index.is_foreign_link(node):
            record = index.record(node)
            index.xattrs(node), index.hardlink_names(node)
            if index.is_symlink(node):
                assert len(index.symlink_target(node)) == record.size
            if record.type is not NodeType.FILE:
                continue
            reached = 0
            for extent in index.extents(node):
                assert reached <= extent.offset < extent.offset + extent.size <= record.size
                reached = extent.offset + extent.size
    assert all(path.startswith(b"/") for _, path in index.foreign_links())


# --- lazy layers ----------------------------------------------------------------------------------


def _look(layer: LazyLayer, blob: bytes) -> None:
    """Every span, and that what is decoded is where the index looks for it."""
    index, table = LayerIndex(layer.index), layer.table
    _walk(index)
    for node in range(index.node_count):
        if not index.is_foreign_link(node) and index.record(node).type is NodeType.FILE:
            for extent in index.extents(node):
                assert 0 <= extent.position <= extent.position + extent.size <= table.data_size
    for span in range(min(table.span_count, 1000)):
        start, end = table.compressed_range(span)
        assert 0 <= start < end <= table.blob_size
        try:
            regions = table.decode(span, blob[start:end])
        except ContentError:
            continue
        for region in regions:
            assert 0 <= region.position <= region.position + len(region.data) <= table.data_size
    assert open_span_table(table.to_bytes()).to_bytes() == table.to_bytes()


def _toc(compression: Compression) -> Callable[[bytes], None]:
    body = seeds.body(compression)
    blob = bytes(body.data)

    def run(data: bytes) -> None:
        read = partial(
            read_toc, data, compression=compression, blob_size=len(blob), data_end=len(blob)
        )
        # What needs no digests takes whatever the other takes, and more.
        loose = read(may_lack_digests=True)
        _look(loose, blob)
        strict = read()
        assert strict.table.is_pinned
        assert strict.table.to_bytes() == loose.table.to_bytes()

    return run


def _toc_entries(data: bytes) -> None:
    assert all(isinstance(entry, dict) for entry in iter_entries(data))


def _estargz(data: bytes) -> None:
    """The end of a blob, which tells where its table of contents is."""
    found = find_toc({estargz.TOC_DIGEST: seeds.TOC_DIGEST}, len(data), data)
    assert isinstance(found, TocRange)
    assert 0 <= found.start < found.end <= len(data)
    part = data[found.start : found.end]
    estargz.extract_json(part)
    _look(open_layer(found, part), data)


def _chunked_manifest(data: bytes) -> None:
    for size in (len(seeds.body(Compression.ZSTD).toc), limits.TOC_SIZE):
        with contextlib.suppress(ContentError):
            assert len(zstd_chunked.extract_json(data, size)) == size


def _annotations(data: bytes) -> None:
    """Annotations as lines, and what the end of two blobs makes of them."""
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").splitlines())
    annotations = {name: value for name, _, value in pairs}
    for blob in (*seeds.estargz_blobs(), *seeds.chunked_blobs()):
        found = find_toc(annotations, len(blob))
        if isinstance(found, NeedTail):
            assert 0 <= found.size <= len(blob)
            found = find_toc(annotations, len(blob), blob[-found.size :])
        if isinstance(found, TocRange):
            assert 0 <= found.start < found.end <= len(blob)
            _look(open_layer(found, blob[found.start : found.end]), blob)


def _ztoc(data: bytes) -> None:
    blob = seeds.soci_blob()
    wanted = [SpanRange(0, 1 << 31), SpanRange(-5, 3)]
    layer = open_ztoc(data, expected=Digest.of(data), blob_size=len(blob), prefetch=wanted)
    _look(layer, blob)


def _checkpoints(data: bytes) -> None:
    """Without windows, which are most of it and mean nothing: they are put in here."""
    head, rest = data[:12], data[12:]
    points = (rest[at : at + 17] for at in range(0, len(rest), 17))
    packed = head + b"".join(p + bytes(WINDOW) if len(p) == 17 else p for p in points)
    blob = seeds.soci_blob()
    for checkpoint in parse_checkpoints(packed)[:20]:
        size = 1 + checkpoint.position % 5000
        assert (
            len(inflate_span(blob[checkpoint.start :] or b"\0", checkpoint, packed, size)) == size
        )


def _inflate(data: bytes) -> None:
    point, *_ = parse_checkpoints(
        struct.pack("<iq", 1, 0) + struct.pack("<qqB", 10, 0, 0) + bytes(WINDOW)
    )
    for bits in range(8):
        moved = point._replace(bits=bits)
        assert len(inflate_span(data or b"\0", moved, bytes(12 + 17 + WINDOW), 3000)) == 3000


def _soci_index(data: bytes) -> None:
    digest = Digest.of(data)
    with contextlib.suppress(ContentError):
        parse_soci_index(data, expected=digest, subject=Digest.parse(seeds.DIGEST))
    found = parse_soci_index(data, expected=digest)
    pinned_index(found.manifest)
    assert all(layer.ztoc.size >= 0 for layer in found.layers.values())
    assert not found.layers.keys() & found.frames.keys()


def _ztoc_twin(data: bytes) -> None:
    """Whatever it says: nothing but the zTOC comes out of it."""
    ztoc = seeds.ztocs()[0]
    described = Descriptor(media_type="a/b", digest=Digest.of(ztoc), size=len(ztoc))
    assert expand_twin(data, described) == ztoc


def _written_ztoc(data: bytes) -> None:
    """A tar of whatever members: what is written of it is read as the same."""
    parser, members, index = TarParser(), MemberCollector(), IndexBuilder(own_files=False)
    for at in range(0, len(data), 700):
        piece = data[at : at + 700]
        found = parser.feed(piece)
        for member in found:
            index.add(member)
        members.feed(piece, found, is_ended=parser.is_ended)
    parser.finish()
    if not data:
        return
    parts = ZtocParts(
        members=members.members,
        compressed_size=len(data),
        uncompressed_size=members.archive_size,
        algorithm=Algorithm.UNCOMPRESSED,
        span_digests=[bytes(32)],
        checkpoints=write_tar_zinfo(len(data), len(data)),
        tool=b"fuzz",
    )
    ztoc = write_ztoc(parts)
    assert open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(data)).index == index.finish()


def _checkpoint_builder(data: bytes) -> None:
    builder = CheckpointBuilder(4096)
    plain = b"".join(
        piece for at in range(0, len(data), 999) for piece in builder.feed(data[at : at + 999])
    )
    builder.finish()
    spans = builder.spans()
    points = parse_checkpoints(spans.checkpoints)
    ends = [*points[1:], None]
    for point, end in zip(points, ends, strict=True):
        size = (end.position if end else len(plain)) - point.position
        if size:
            found = inflate_span(data[point.start :], point, spans.checkpoints, size)
            assert found == plain[point.position : point.position + size]


def _zstd_frames(data: bytes) -> None:
    """A document before it is compressed: what is changed there is not hidden by zstd."""
    blob = seeds.frame_blobs()[0]
    document = compress_ztoc(data)
    _look(open_frames(document, expected=Digest.of(document), blob_size=len(blob)), blob)


def _zstd_document(data: bytes) -> None:
    blob = seeds.frame_blobs()[0]
    _look(open_frames(data, expected=Digest.of(data), blob_size=len(blob)), blob)


def _frame_builder(data: bytes) -> None:
    """Whatever the frames: each run decodes alone to what the stream had there."""
    builder = FrameBuilder(4096)
    plain = b"".join(
        piece for at in range(0, len(data), 999) for piece in builder.feed(data[at : at + 999])
    )
    builder.finish()
    table = FrameTable(
        blob_size=len(data),
        data_size=len(plain),
        digests=b"".join(builder.digests),
        packed_runs=builder.packed_runs,
    )
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        for region in table.decode(span, data[start:end]):
            assert region.data == plain[region.position : region.position + len(region.data)]


def _prefetch(data: bytes) -> None:
    assert all(first <= last for first, last in parse_prefetch(data, expected=Digest.of(data)))


# --- the store's own files ------------------------------------------------------------------------


def _span_table(data: bytes) -> None:
    """The body of a table under a seal that is right: damage that no checksum shows."""
    for kind in Kind:
        try:
            table = open_span_table(seal(kind, data))
        except StoreDamaged:
            continue
        assert table.span_count >= 0
    unseal(data)


def _layer_index(data: bytes) -> None:
    """Changed bytes are noticed; unchanged ones are read."""
    _walk(LayerIndex(data))


def _span_map(data: bytes) -> None:
    """Damaged maps count as empty."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(data)
        file.flush()
        present = SpanMap(Path(file.name), 100)
    # By its own checksum; a changed one may happen to be right.
    assert present.present_count == 0 or struct.pack("<I", zlib.crc32(data[20:])) == data[16:20]


def _chunk_catalogue(data: bytes) -> None:
    """Changed bytes are noticed; unchanged ones are searched."""
    catalogue = ChunkCatalogue(data)
    for key in (0, 1 << 63, (1 << 64) - 1):
        assert len(list(catalogue.find(key.to_bytes(8, "big") + bytes(24)))) <= len(catalogue)


# --- documents and texts --------------------------------------------------------------------------


def _manifest(data: bytes) -> None:
    for media_type in (None, "application/vnd.oci.image.manifest.v1+json"):
        found = parse_manifest(data, media_type=media_type)
        if isinstance(found, Index):
            for matcher in (only(Platform("linux", "arm", "v7")), only(Platform("linux", "amd64"))):
                select_manifests(found, matcher)
        else:
            pinned_index(found)
            for layer in found.layers:
                find_toc(layer.annotations, layer.size)


def _reference(text: bytes) -> None:
    name = text.decode("utf-8", "surrogateescape")
    found = parse_any_reference(name)
    if isinstance(found, Reference):
        assert Reference.parse(str(found)) == found


def _argument(text: bytes) -> None:
    parse_image_argument(text.decode("utf-8", "surrogateescape"))


def _platform(text: bytes) -> None:
    found = Platform.parse(text.decode("utf-8", "surrogateescape"), host=Platform("linux", "arm64"))
    assert found.normalized() == found
    only(found).rank(Platform("linux", "amd64"))


def _challenge(text: bytes) -> None:
    challenges = parse_challenges(text.decode("latin-1").split("\n"))
    chosen = choose_challenge(challenges)
    if chosen is not None:
        Realm.of(chosen, registry=Origin("https", "example.com", 443), scopes=["repository:a:pull"])


def _redirect(text: bytes) -> None:
    target = next_hop(httpx.URL("https://example.com/v2/"), text.decode("latin-1"))
    assert Origin.of(target).scheme == "https"


def _upload(text: bytes) -> None:
    """The headers that say where an upload goes on."""
    location, _, header = text.decode("latin-1").partition("\n")
    kept = parse_kept(header)
    assert kept is None or kept >= 0
    assert 0 <= parse_smallest_piece(header) <= limits.PUSH_CHUNK_LARGEST
    target = upload_location(httpx.URL("https://example.com/v2/a/blobs/uploads/"), location)
    assert with_digest(target, Digest.of(b"")).scheme == "https"


def _referrers(data: bytes) -> None:
    """A list of referrers, changed as a push changes it."""
    found = parse_manifest(data, media_type=OCI_INDEX)
    assert isinstance(found, Index)
    entry = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"new"), size=3)
    extended = with_referrer(found, entry)
    again = found if extended is None else parse_manifest(extended, media_type=OCI_INDEX)
    assert isinstance(again, Index)
    assert again.manifests[-1].digest == entry.digest or extended is None
    assert without_referrer(again, entry.digest) is not None


def _cri_request(data: bytes) -> None:
    images = FakeImages([make_image(1)])
    for method in Handlers(images).methods():
        with contextlib.suppress(InvalidArgument):
            request = parse_request(method, data)
            assert parse_request(method, request.SerializeToString()) == request
            result = trio.run(method.work, request)
            for message in method.encode(result):
                message.SerializeToString()


def _cri_user(text: bytes) -> None:
    user = text.decode("utf-8", "surrogateescape")
    message = image_message(make_image(1, user=user))
    assert not (message.HasField("uid") and message.username)
    message.SerializeToString()


def _logins(data: bytes) -> None:
    """Files of logins never raise: who cannot log in is told so later."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for name in ("config.json", ".dockercfg"):
            file = Path(directory) / name
            file.write_bytes(data)
            for registry in ("docker.io", "example.com:5000"):
                FileCredentials([file], helper_deadline=1).find(registry, "library/x")


def _written(data: bytes) -> None:
    """What is written of a tar shows what the tar that is written along shows."""
    data = _with_checksums(data)
    for format_ in FORMATS:
        written = write_layer(data, format_, prioritized=(b"etc/b", b"etc/a", b"null"))
        tar = b"".join(iter_decoded([written.blob]))
        assert written.result.diff_id is None or written.result.diff_id == Digest.of(tar)
        assert written.result.diff_id is not None or tar == data
        lazy = open_lazy(written.blob, written.annotations)
        assert describe_lazy(lazy, written.blob) == describe_tar(tar)


def _trace(data: bytes) -> None:
    trace = parse_trace(data)
    assert parse_trace(trace.to_bytes()) == trace


def _hosts_toml(data: bytes) -> None:
    for entry in parse_hosts_file(Path("/etc/certs.d/h.test"), data):
        assert entry.base is None or entry.base.scheme in {"http", "https"}
        assert "\n" not in "".join(value.reveal() for _, value in entry.headers)


def _registries_yaml(data: bytes) -> None:
    file = RegistriesFile.parse(data)
    for name in ("docker.io", "h.test:5000", "m.test"):
        with _quiet("imgvol.registry.registries_file"):
            mirrors = file.mirrors_of(name)
        if mirrors is not None:
            assert all(base.host for base in mirrors.bases)
            rewrite("library/x", mirrors.rewrites)
        file.login_for(name)
        file.tls_for(name, Path("/"))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


PARSERS = {
    "tar": Parser(_tar, seeds.archives),
    "pax": Parser(_pax, seeds.pax_bodies),
    "gzip": Parser(_decode(Compression.GZIP), lambda: [gzip.compress(a, 1) for a in seeds.plain()]),
    "zstd": Parser(_decode(Compression.ZSTD), seeds.zstd_streams),
    "lz4": Parser(_unpack(Packing.LZ4), lambda: [lz4.frame.compress(a) for a in seeds.plain()]),
    "bzip2": Parser(_unpack(Packing.BZIP2), lambda: [bz2.compress(a) for a in seeds.plain()]),
    "xz": Parser(_unpack(Packing.XZ), lambda: [lzma.compress(a) for a in seeds.plain()]),
    "estargz": Parser(_estargz, seeds.estargz_blobs),
    "toc-entries": Parser(_toc_entries, lambda: [seeds.body(Compression.GZIP).toc]),
    "toc-gzip": Parser(_toc(Compression.GZIP), lambda: [seeds.body(Compression.GZIP).toc]),
    "toc-zstd": Parser(_toc(Compression.ZSTD), lambda: [seeds.body(Compression.ZSTD).toc]),
    "zstd-chunked": Parser(_chunked_manifest, seeds.chunked_manifests),
    "annotations": Parser(_annotations, seeds.annotations),
    "ztoc": Parser(_ztoc, seeds.ztocs),
    "checkpoints": Parser(_checkpoints, seeds.checkpoint_heads),
    "inflate": Parser(_inflate, lambda: [seeds.soci_blob()[10:6000], seeds.soci_blob()[11:]]),
    "soci-index": Parser(_soci_index, seeds.soci_indexes),
    "ztoc-twin": Parser(_ztoc_twin, seeds.ztoc_twins),
    "ztoc-writer": Parser(_written_ztoc, lambda: [seeds.soci_tar(), *seeds.archives()]),
    "checkpoint-builder": Parser(_checkpoint_builder, seeds.gzip_blobs),
    "zstd-frames": Parser(_zstd_frames, seeds.frame_ztocs),
    "zstd-document": Parser(_zstd_document, seeds.frame_documents),
    "frame-builder": Parser(_frame_builder, seeds.frame_blobs),
    "prefetch": Parser(_prefetch, seeds.prefetch_artifacts),
    "span-table": Parser(_span_table, seeds.span_tables, (StoreDamaged,)),
    "layer-index": Parser(_layer_index, seeds.layer_indexes, (StoreDamaged,)),
    "span-map": Parser(_span_map, seeds.span_maps, ()),
    "lazy-writing": Parser(_written, seeds.archives),
    "trace": Parser(_trace, seeds.traces),
    "chunk-catalogue": Parser(_chunk_catalogue, seeds.chunk_catalogues, (StoreDamaged,)),
    "manifest": Parser(_manifest, seeds.manifests),
    "config": Parser(parse_image_config, seeds.configs),
    "reference": Parser(_reference, seeds.references, (InvalidReference, InvalidDigest)),
    "argument": Parser(_argument, seeds.arguments, (InvalidArgument,)),
    "platform": Parser(_platform, seeds.platforms, (InvalidPlatform,)),
    "challenge": Parser(_challenge, seeds.challenges, (ProtocolError,)),
    "redirect": Parser(_redirect, seeds.locations, (ProtocolError,)),
    "upload": Parser(_upload, seeds.uploads, (ProtocolError,)),
    "referrers": Parser(_referrers, seeds.referrers),
    "cri-request": Parser(_cri_request, seeds.cri_requests, (InvalidArgument, NotFound)),
    "cri-user": Parser(_cri_user, lambda: [b"0:1", b"root:root", b"-9223372036854775808"], ()),
    "logins": Parser(_logins, seeds.logins, ()),
    "hosts-toml": Parser(_hosts_toml, seeds.hosts_files, (BadKey,)),
    "registries-yaml": Parser(_registries_yaml, seeds.registries_files, (BadKey,)),
    "image-list": Parser(parse_list, seeds.image_lists, ()),
    "fuse-request": Parser(_fuse_request, seeds.fuse_requests, (MalformedRequest,)),
    "preload-cache": Parser(_preload_cache, seeds.preload_caches),
}

"""zTOCs that we write, read by soci-snapshotter's own code: the same files, the same bytes."""

import gzip
import hashlib
import io
import json
import subprocess
import zlib
from base64 import b64decode
from itertools import pairwise

import pytest
from isal import igzip

from imgvol.errors import DigestMismatch, InvalidLayer
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.oci.digest import Digest
from imgvol.publish import index_job
from support import edge_cases, frames, tars
from support.images import sparse, tar_bytes
from support.lazy import rich_archive
from support.peers import require_peer, stargz_layer
from support.programs import require, run
from support.soci import sha256

KIB = 1024
# What soci-snapshotter's builder refuses, and a zTOC cannot say, or we leave out.
NONE = 1 << 40
REFUSED_BY_PEER = {"old-sparse", "contiguous", "global-pax-header"}


def index(directory, blob: bytes, tar: bytes, *, span_size: int = 64 * KIB, **changes):
    """What the job answers, and the zTOC."""
    request = {
        "digest": sha256(blob),
        "size": len(blob),
        "diff_id": sha256(tar),
        "span_size": span_size,
        **changes,
    }
    answer = index_job.run(request, io.BytesIO(blob), directory, lambda _done: None)
    if "unfit" in answer:
        return answer, b""
    ztoc = (directory / "ztoc").read_bytes()
    assert (answer["ztoc"]["digest"], answer["ztoc"]["size"]) == (sha256(ztoc), len(ztoc))
    twin = (directory / "twin").read_bytes()
    assert (answer["twin"]["digest"], answer["twin"]["size"]) == (sha256(twin), len(twin))
    return answer, ztoc


def tell(directory, ztoc: bytes, blob: bytes, *, every: int = NONE) -> dict:
    """What the peer finds in a zTOC; it extracts one of so many files."""
    program = require_peer("ztoc")
    (directory / "blob").write_bytes(blob)
    (directory / "read").write_bytes(ztoc)
    command = [program, "-read", directory / "read", f"-every={every}", directory / "blob"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def peer_index(directory, blob: bytes, *flags: str) -> bytes:
    program = require_peer("ztoc")
    (directory / "blob").write_bytes(blob)
    command = [program, *flags, directory / "blob"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(tar: bytes) -> dict[bytes, str]:
    """SHA-256 of the first file of each name."""
    found: dict[bytes, str] = {}
    for member in tars.parse([tar]):
        content = tar[member.payload_offset :][: member.payload_size]
        if member.type.name == "FILE":
            found.setdefault(member.name, hashlib.sha256(content).hexdigest())
        else:
            found.setdefault(member.name, "")
    return {name: digest for name, digest in found.items() if digest}


def check(directory, blob: bytes, tar: bytes, *, span_size: int = 64 * KIB, every: int = 1) -> None:
    """The peer extracts what is in the tar, and its own zTOC says the same as ours."""
    answer, ztoc = index(directory, blob, tar, span_size=span_size)
    assert "unfit" not in answer
    found = tell(directory, ztoc, blob, every=every)
    extracted = {b64decode(m["Name"]): m.pop("Content", "") for m in found["Members"]}
    extracted = {name: content for name, content in extracted.items() if content}
    expected = contents(tar)
    assert len(extracted) >= len(expected) // (2 * every)
    assert extracted.items() <= expected.items()
    if every == 1:
        assert extracted == expected
    algorithm = "gzip" if blob.startswith(b"\x1f\x8b") else "uncompressed"
    theirs = tell(
        directory,
        peer_index(directory, blob, f"-span={span_size}", f"-algorithm={algorithm}"),
        blob,
    )
    same(found, theirs)


def same(ours: dict, theirs: dict) -> None:
    """But for the windows, which the peer does not trim."""
    for found in (ours, theirs):
        for member in found["Members"] or ():
            member.pop("Content", None)  # of number 0
    assert ours | {"Checkpoints": ""} == theirs | {"Checkpoints": ""}


@pytest.mark.parametrize("level", [1, 6, 9])
def test_the_reference_extracts_every_file_of_a_gzip_layer(level, tmp_path):
    tar = rich_archive()
    check(tmp_path, gzip.compress(tar, level), tar, every=1 if level == 6 else 7)


def test_the_reference_extracts_every_file_of_a_plain_layer(tmp_path):
    tar = rich_archive()
    check(tmp_path, tar, tar, span_size=20_000)


def test_a_plain_layer_whose_last_span_is_full(tmp_path):
    tar = tars.member(b"a", b"x" * 3000) + tars.END
    check(tmp_path, tar, tar, span_size=len(tar) // 2)


def test_several_members_and_a_name_in_the_header(tmp_path):
    tar = rich_archive()
    cuts = [0, 700, len(tar) // 3, len(tar) // 3 + 1, len(tar)]
    parts = [gzip.compress(tar[start:end]) for start, end in pairwise(cuts)]
    name = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03layer.tar\0"
    parts[0] = name + parts[0][10:]
    check(tmp_path, b"".join(parts), tar, span_size=64 * KIB, every=5)


@pytest.mark.parametrize("program", [("pigz", "-6", "-c"), ("gzip", "-9", "-c")])
def test_what_other_programs_compress(program, tmp_path):
    require(program[0])
    tar = rich_archive()
    done = subprocess.run(program, input=tar, capture_output=True, check=True, timeout=60)
    check(tmp_path, done.stdout, tar, every=9)


def test_what_go_compresses_with_a_member_for_each_file(tmp_path):
    """An eStargz blob, taken for the plain gzip that it also is."""
    blob = stargz_layer(tmp_path, rich_archive()).blob
    check(tmp_path, blob, gzip.decompress(blob), every=9)


def test_what_isal_compresses(tmp_path):
    tar = rich_archive()
    check(tmp_path, igzip.compress(tar, 2), tar, every=9)


@pytest.mark.parametrize("padding", [0, 1, 512, 10_240])
def test_padding_after_the_archive_is_not_part_of_it(padding, tmp_path):
    tar = tars.member(b"a", b"x" * 3000) + tars.END + bytes(padding)
    check(tmp_path, gzip.compress(tar), tar)


def test_an_archive_without_an_end(tmp_path):
    tar = tars.member(b"a", b"x" * 3000)
    check(tmp_path, gzip.compress(tar), tar)


@pytest.mark.parametrize("case", edge_cases.CASES + edge_cases.DISPUTED, ids=lambda case: case.name)
def test_strange_members_are_described_as_the_reference_does_or_left_out(case, tmp_path):
    for layer in edge_cases.image_of([case], ["gzip"] * edge_cases.LAYERS).layers:
        answer, ztoc = index(tmp_path, layer.blob, layer.tar)
        if "unfit" in answer:
            assert "sparse" in case.name
            assert "holes" in answer["unfit"]
        elif case.name in REFUSED_BY_PEER:
            tell(tmp_path, ztoc, layer.blob)
        else:
            peers = peer_index(tmp_path, layer.blob, f"-span={64 * KIB}")
            same(tell(tmp_path, ztoc, layer.blob), tell(tmp_path, peers, layer.blob))


def test_a_real_root_filesystem(tmp_path):
    """As tar writes it, with its owners, links, devices and attributes."""
    require("tar")
    made = run("tar", "-C", "/usr/lib", "-cf", tmp_path / "tar", "python3", check=False)
    if made.returncode:
        pytest.skip("there is no /usr/lib/python3 to pack")
    tar = (tmp_path / "tar").read_bytes()[: 4 << 20]
    tar = tar[: len(tar) - len(tar) % 512]
    members = tars.parse([(tmp_path / "tar").read_bytes()])
    last = [m for m in members if m.payload_offset + m.payload_size < len(tar)][-2]
    tar = tar[: last.payload_offset + -(-last.payload_size // 512) * 512] + tars.END
    check(tmp_path, gzip.compress(tar, 6), tar, span_size=512 * KIB, every=50)


# --- what must not become an index ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"digest": "sha256:" + "0" * 64}, DigestMismatch, "its digest"),
        ({"diff_id": "sha256:" + "0" * 64}, DigestMismatch, "its diff ID"),
        ({"size": 17}, DigestMismatch, "another size"),
    ],
)
@pytest.mark.fault("F98")
def test_a_wrong_layer_leaves_nothing(changes, kind, text, tmp_path):
    tar = rich_archive()
    with pytest.raises(kind, match=text):
        index(tmp_path, gzip.compress(tar), tar, **changes)
    assert not list(tmp_path.iterdir())


def test_a_blob_that_is_cut_off_leaves_nothing(tmp_path):
    tar = rich_archive()
    blob = gzip.compress(tar)
    with pytest.raises((DigestMismatch, InvalidLayer)):
        index(tmp_path, blob[:-20], tar, digest=sha256(blob), size=len(blob))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blob", [b"", b"\x1f\x8b"])
def test_a_layer_without_content_is_an_error(blob, tmp_path):
    with pytest.raises(InvalidLayer):
        index(tmp_path, blob, b"")
    assert not list(tmp_path.iterdir())


def test_zstd_in_one_frame_is_left_out_and_says_why(tmp_path):
    tar = rich_archive()
    answer, _ = index(tmp_path, frames.frame(tar), tar)
    assert answer == {"unfit": "one zstd frame: can only be read from its beginning; convert it"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"digest": "sha256:" + "0" * 64}, "its digest"),
        ({"diff_id": "sha256:" + "0" * 64}, "its diff ID"),
        ({"size": 17}, "another size"),
    ],
)
@pytest.mark.fault("F98")
def test_a_wrong_layer_of_zstd_leaves_nothing(changes, text, tmp_path):
    tar = rich_archive()
    with pytest.raises(DigestMismatch, match=text):
        index(tmp_path, frames.as_pzstd(tar, 512 * KIB), tar, **changes)
    assert not list(tmp_path.iterdir())


def test_sparse_files_are_left_out_of_zstd_layers_too(tmp_path):
    tar = tar_bytes([sparse("s", 8192, [(512, b"x" * 512)])])
    answer, _ = index(tmp_path, frames.as_pzstd(tar, 1000), tar)
    assert "holes" in answer["unfit"]


def test_a_block_that_is_too_long_for_a_span_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("imgvol.limits.SPAN_SIZE", 100_000)
    tar = tars.member(b"zeros", bytes(3_000_000)) + tars.END
    encoder = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    blob = encoder.compress(tar) + encoder.flush()
    answer, _ = index(tmp_path, blob, tar)
    assert "span" in answer["unfit"]


def test_our_own_reader_opens_it(tmp_path):
    tar = rich_archive()
    blob = gzip.compress(tar)
    _, ztoc = index(tmp_path, blob, tar)
    layer = open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(blob))
    assert layer.table.is_pinned
    with pytest.raises(InvalidLayer, match="another blob"):
        open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(blob) + 1)

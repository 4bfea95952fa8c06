"""Layouts as targets: what is there stays, and what fails leaves nothing."""

import io
import json
from pathlib import Path

import pytest

from imgvol.errors import Conflict, DigestMismatch, InvalidDocument, LocalError
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_MANIFEST
from imgvol.publish.layout_output import write_layout
from imgvol.publish.pushing import Blob, Document
from imgvol.sources.layout import REF_NAME


def describe(data: bytes) -> Descriptor:
    return Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(data), size=len(data))


def blob(data: bytes, actual: bytes | None = None) -> Blob:
    return Blob(describe(data), lambda: io.BytesIO(data if actual is None else actual))


def document(data: bytes) -> Document:
    return Document(describe(data), data)


def tree(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*")}


def names(path: Path) -> dict[str | None, str]:
    index = json.loads((path / "index.json").read_bytes())
    return {m.get("annotations", {}).get(REF_NAME): m["digest"] for m in index["manifests"]}


def test_a_new_layout_has_everything(tmp_path):
    out = tmp_path / "out"
    top = write_layout(out, [blob(b"one")], [document(b"child"), document(b"top")], "v1")
    assert top == Digest.of(b"top")
    assert names(out) == {"v1": str(top)}
    assert json.loads((out / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for data in (b"one", b"child", b"top"):
        path = out / "blobs/sha256" / Digest.of(data).encoded
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o644
    assert not [name for name in tree(out) if "partial" in name]


def test_other_images_stay_and_a_name_moves(tmp_path):
    write_layout(tmp_path, [], [document(b"a")], "a")
    write_layout(tmp_path, [], [document(b"b")], "b")
    write_layout(tmp_path, [], [document(b"c")], "a")
    assert names(tmp_path) == {"a": str(Digest.of(b"c")), "b": str(Digest.of(b"b"))}
    write_layout(tmp_path, [], [document(b"n")], None)
    write_layout(tmp_path, [], [document(b"n")], None)
    assert len(json.loads((tmp_path / "index.json").read_bytes())["manifests"]) == 3


@pytest.mark.parametrize("is_new", [True, False])
def test_what_fails_leaves_what_was_there(tmp_path, is_new):
    out = tmp_path / "out"
    if not is_new:
        write_layout(out, [blob(b"old")], [document(b"top")], "v1")
    before = tree(tmp_path)
    with pytest.raises(DigestMismatch):
        write_layout(out, [blob(b"one"), blob(b"two", b"other")], [document(b"t")], "v1")

    def fail():
        raise LocalError("gone")

    with pytest.raises(LocalError, match="gone"):
        write_layout(out, [Blob(describe(b"x"), fail)], [document(b"t")], "v1")
    assert tree(tmp_path) == before


def test_what_is_no_layout_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="no OCI layout"):
        write_layout(tmp_path, [], [document(b"t")], "v1")
    with pytest.raises(LocalError):
        write_layout(tmp_path / "file" / "x", [], [document(b"t")], "v1")
    with pytest.raises(LocalError):
        write_layout(tmp_path / "no" / "parent", [], [document(b"t")], "v1")
    assert tree(tmp_path) == {"file"}


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"manifests": 1}'])
def test_a_damaged_index_is_an_error(tmp_path, index):
    write_layout(tmp_path, [], [document(b"t")], "v1")
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(InvalidDocument):
        write_layout(tmp_path, [], [document(b"u")], "v2")
    assert (tmp_path / "index.json").read_bytes() == index

"""`fsck` without a daemon: every kind of damage is found, and repaired as far as can be."""

import os
import shutil
import sqlite3
from dataclasses import replace

import pytest

from imgvol import offline
from imgvol.config import Config
from imgvol.content import check, lazy_layer
from imgvol.content.check import Remedy
from imgvol.content.records import Origin
from imgvol.content.span_map import SpanMap
from imgvol.content.store import open_store
from imgvol.errors import StoreDamaged, StoreLocked
from imgvol.images.collection import Collector
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.digest import Digest
from support import images, members
from support.artifacts import Artifact, Blob
from support.records import layer_record
from support.sources import MemorySource
from support.spans import PlainTable, index_of

BIG = bytes(range(256)) * 8000
IMAGE = images.Image(
    [
        images.Layer([images.file("base", b"base"), images.file("big", BIG)], "gzip"),
        images.Layer([images.file("more", b"more")], "none"),
    ]
)
BLOB = bytes(range(250)) * 4
TABLE = PlainTable(BLOB, [(start, start + 100) for start in range(0, len(BLOB), 100)])


@pytest.fixture
def config(tmp_path):
    return Config(root=tmp_path / "root", run=tmp_path / "run", is_system=False)


async def pull(store, name="one"):
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await Puller(store).pull(source, resolved, name, PullProgress())


async def filled(config):
    async with open_store(config.root) as store:
        return await pull(store)


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


async def test_a_good_store_has_nothing_wrong_and_neither_has_none(config):
    assert await offline.check(config, repair=False) == offline.CheckReport()
    assert not config.root.exists(), "looking makes nothing"
    await filled(config)
    assert await offline.check(config, repair=True) == offline.CheckReport()


async def test_a_store_in_use_is_not_touched(config):
    async with open_store(config.root):
        with pytest.raises(StoreLocked):
            await offline.check(config, repair=True)


DAMAGE = {
    "index": lambda layer: flip(layer / "index"),
    "no index": lambda layer: (layer / "index").unlink(),
    "card": lambda layer: flip(layer / "layer.json", 40),
    "no card": lambda layer: (layer / "layer.json").unlink(),
    "data cut": lambda layer: os.truncate(layer / "data", 100),
    "own file cut": lambda layer: os.truncate(layer / "files" / "0", 100),
    "own file gone": lambda layer: (layer / "files" / "0").unlink(),
    "directory gone": shutil.rmtree,
}


@pytest.mark.fault("F27")
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_layer_is_found_dropped_and_pulled_again(config, damage):
    image = await filled(config)
    layer, other = image.layers
    DAMAGE[damage](config.root / "layers" / layer.digest.encoded)
    report = await offline.check(config, repair=False)
    # Without its layer, a file's other name is a stray.
    subjects = [f.subject for f in report.wrong if not f.subject.startswith("files/sha256/")]
    assert subjects == [f"layer {layer.digest}"], report
    assert report == await offline.check(config, repair=False), "looking repairs nothing"

    report = await offline.check(config, repair=True)
    assert f"layer {layer.digest}" in {finding.subject for finding in report.repaired}
    assert {finding.remedy for finding in report.wrong} == {Remedy.PULL}
    async with open_store(config.root) as store:
        assert [record.digest for record in await store.records.layers()] == [other.digest]
        again = await pull(store)
        async with Views(store).hold(again) as view:
            opened = view.layers[0]
            assert await opened.read(opened.index.child(0, b"big"), 0, len(BIG)) == BIG
    assert await offline.check(config, repair=False) == offline.CheckReport()


async def test_strays_are_found_and_removed(config):
    image = await filled(config)
    nobody = "0" * 64
    for place in ("layers", "lazy", "places"):
        (config.root / place / nobody).mkdir()
    (config.root / "files/sha256" / nobody).write_bytes(b"x")
    (config.root / "blobs/sha256/odd").write_bytes(b"x")
    report = await offline.check(config, repair=False)
    places = ("layers", "lazy", "places", "files/sha256")
    expected = {f"{place}/{nobody}" for place in places} | {"blobs/sha256/odd"}
    assert {finding.subject for finding in report.wrong} == expected
    report = await offline.check(config, repair=True)
    assert (len(report.repaired), report.wrong) == (5, ())
    async with open_store(config.root) as store:
        assert await store.records.images() == [image]


async def test_a_damaged_document_is_found_and_mended_by_pulling(config):
    image = await filled(config)
    flip(config.root / "blobs" / "sha256" / image.id.encoded)
    (config.root / "blobs" / "sha256" / image.manifest.encoded).unlink()
    for repair in (False, True):
        report = await offline.check(config, repair=repair)
        assert {finding.subject for finding in report.wrong} == {f"image {image.manifest}"}
        assert sorted(finding.problem.rsplit(" ", 1)[1] for finding in report.wrong) == [
            "changed",
            "gone",
        ]
    async with open_store(config.root) as store:
        await pull(store)
    assert await offline.check(config, repair=False) == offline.CheckReport()


@pytest.fixture
def plain_tables(monkeypatch):
    for module in (check, lazy_layer):
        monkeypatch.setattr(module, "open_span_table", lambda _data: TABLE)
    monkeypatch.setattr(PlainTable, "to_bytes", lambda _self: b"plain")


@pytest.mark.usefixtures("plain_tables")
@pytest.mark.parametrize("damage", ["spans flipped", "spans of another", "data cut", "index"])
async def test_a_damaged_lazy_layer_is_found_and_dropped(config, damage):
    record = replace(layer_record("x"), size=len(BLOB), is_complete=False, format="SOCI")
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    origin = Origin(argument="x", plain_http=False, insecure=False, ca_file=None)
    async with open_store(config.root) as store:
        await store.add_lazy_layer(record, LazyLayer(index, TABLE), origin)
    lazy = config.root / "lazy" / record.digest.encoded
    spans = SpanMap(lazy / "spans", TABLE.span_count)
    spans.add(3)
    spans.save(spans.snapshot())
    assert await offline.check(config, repair=False) == offline.CheckReport()
    match damage:
        case "spans flipped":
            flip(lazy / "spans")
        case "spans of another":
            other = SpanMap(lazy / "spans", TABLE.span_count + 8)
            other.save(other.snapshot())
        case "data cut":
            os.truncate(lazy / "data", 1)
        case "index":
            flip(lazy / "index")
    report = await offline.check(config, repair=True)
    assert [finding.subject for finding in report.repaired] == [f"layer {record.digest}"]
    assert report.wrong == ()
    assert os.listdir(config.root / "lazy") == []


# --- the database --------------------------------------------------------------------------------


def ruin(config, how):
    database = config.root / "imgvol.db"
    match how:
        case "garbage":
            database.write_bytes(b"not a database" * 1000)
        case "gone":
            database.unlink()
        case "cut":
            os.truncate(database, database.stat().st_size // 2)
        case "page":
            data = bytearray(database.read_bytes())
            data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
            database.write_bytes(data)


@pytest.mark.fault("F31")
@pytest.mark.parametrize("how", ["garbage", "gone", "cut", "page"])
@pytest.mark.parametrize("has_copy", [True, False])
async def test_a_damaged_database_is_rebuilt_and_the_old_one_kept(config, how, has_copy):
    image = await filled(config)
    if not has_copy:
        (config.root / "imgvol.db.copy").unlink()
    ruin(config, how)
    ruined = b"" if how == "gone" else (config.root / "imgvol.db").read_bytes()
    report = await offline.check(config, repair=False)
    assert {finding.remedy for finding in report.wrong} == {Remedy.REBUILD}
    report = await offline.check(config, repair=True)
    assert report.wrong == ()
    if how == "gone":
        assert report.set_aside is None
    else:
        assert report.set_aside.read_bytes() == ruined
        assert ".damaged-2" in report.set_aside.name
    async with open_store(config.root) as store:
        (found,) = await store.records.images()
        assert found.manifest == image.manifest
        assert found.names == (("one",) if has_copy else ())
        assert [layer.digest for layer in found.layers] == [x.digest for x in image.layers]
        assert [layer.diff_id for layer in found.layers] == [x.diff_id for x in image.layers]
        async with Views(store).hold(found) as view:
            opened = view.layers[0]
            assert await opened.read(opened.index.child(0, b"big"), 0, len(BIG)) == BIG
    assert await offline.check(config, repair=False) == offline.CheckReport()


async def test_what_is_younger_than_the_copy_is_found_by_its_files_and_pinned(config):
    async with open_store(config.root) as store:
        await store.records.view_slot(Digest.of(b"any"))
    shutil.copy(config.root / "imgvol.db.copy", config.root / "kept")
    image = await filled(config)
    os.replace(config.root / "kept", config.root / "imgvol.db.copy")
    ruin(config, "garbage")
    assert (await offline.check(config, repair=True)).wrong == ()
    async with open_store(config.root) as store:
        (found,) = await store.records.images()
        assert (found.manifest, found.names) == (image.manifest, ())
        assert image.manifest not in {
            thing.digest for thing in (await Collector(store).collect()).removed
        }


async def test_an_artifact_is_found_by_its_files(config):
    artifact = Artifact([Blob(b"hello", "greeting.txt")])
    async with open_store(config.root) as store:
        await store.records.view_slot(Digest.of(b"any"))
    shutil.copy(config.root / "imgvol.db.copy", config.root / "kept")
    async with open_store(config.root) as store:
        source = MemorySource(artifact)
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        image = await Puller(store).pull(source, resolved, "one", PullProgress())
    os.replace(config.root / "kept", config.root / "imgvol.db.copy")
    ruin(config, "garbage")
    assert (await offline.check(config, repair=True)).wrong == ()
    async with open_store(config.root) as store:
        (found,) = await store.records.images()
    assert replace(found, pulled_at=image.pulled_at, names=image.names) == image


@pytest.mark.fault("F10")
async def test_a_database_of_another_version_is_left_alone(config):
    await filled(config)
    with sqlite3.connect(config.root / "imgvol.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreDamaged, match="another version"):
        await offline.check(config, repair=True)
    assert not list(config.root.glob("imgvol.db.damaged-*"))


async def test_a_copy_that_is_damaged_itself_is_not_believed(config):
    image = await filled(config)
    ruin(config, "garbage")
    shutil.copy(config.root / "imgvol.db", config.root / "imgvol.db.copy")
    assert (await offline.check(config, repair=True)).wrong == ()
    async with open_store(config.root) as store:
        (found,) = await store.records.images()
        assert (found.manifest, found.names) == (image.manifest, ())


async def test_a_row_that_belongs_to_nothing_is_told(config):
    await filled(config)
    with sqlite3.connect(config.root / "imgvol.db") as db:
        db.execute("INSERT INTO named_mount VALUES ('nobody', 'container')")
        db.execute("INSERT INTO lease_hold VALUES ('nobody', ?)", [str(Digest.of(b"x"))])
    db.close()
    report = await offline.check(config, repair=False)
    assert [finding.problem for finding in report.wrong] == [
        "rows of lease_hold belong to no lease",
        "rows of named_mount belong to no named_volume",
    ]
    report = await offline.check(config, repair=True)
    assert (len(report.repaired), report.wrong) == (2, ())
    async with open_store(config.root) as store:
        assert len(await store.records.images()) == 1

"""The store as a whole: one owner, records and files brought together, garbage collected."""

import os
import stat

import pytest

from imgvol.content.ownership import own_directory
from imgvol.content.reachability import Thing, ThingKind, unreachable
from imgvol.content.store import open_store
from imgvol.errors import DigestMismatch, LocalError, NotFound, StoreDamaged, StoreLocked
from imgvol.oci.digest import Digest
from support.records import image_record, layer_record


@pytest.mark.fault("F33")
async def test_two_daemons_on_one_root_the_second_is_refused(tmp_path):
    async with open_store(tmp_path / "root"):
        with pytest.raises(StoreLocked):
            async with open_store(tmp_path / "root"):
                pass
    async with open_store(tmp_path / "root"):
        pass


@pytest.mark.fault("F28")
@pytest.mark.parametrize("mode", [0o777, 0o755, 0o710])
def test_a_directory_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(LocalError, match="open to others") as caught:
        own_directory(tmp_path)
    assert f"chmod 700 {tmp_path}" in caught.value.hint
    assert tmp_path.stat().st_mode & 0o777 == mode


def test_a_directory_with_images_to_load_becomes_ours_alone(tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    root.chmod(0o755)
    os.close(own_directory(root))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    root.chmod(0o755)
    (root / "else").touch()
    with pytest.raises(LocalError):
        own_directory(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_a_symbolic_link_as_root_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(LocalError):
        own_directory(tmp_path / "link")


async def test_blobs_round_trip_and_are_verified(tmp_path):
    data = b"document"
    digest = Digest.of(data)
    async with open_store(tmp_path) as store:
        await store.put_blob(digest, data)
        await store.put_blob(digest, data)
        assert await store.read_blob(digest) == data
        with pytest.raises(DigestMismatch):
            await store.put_blob(Digest.of(b"other"), data)
        with pytest.raises(NotFound):
            await store.read_blob(Digest.of(b"other"))
        (tmp_path / "blobs" / "sha256" / digest.encoded).write_bytes(b"changed!")
        with pytest.raises(StoreDamaged):
            await store.read_blob(digest)


@pytest.mark.fault("F02")
async def test_what_a_crash_left_is_gone_after_the_next_start(tmp_path):
    async with open_store(tmp_path):
        pass
    (tmp_path / "ingest" / "layer-1").mkdir()
    (tmp_path / "ingest" / "blob-2").write_text("half")
    (tmp_path / "layers" / ("0" * 64)).mkdir()
    (tmp_path / "files" / "sha256" / "alone").write_text("no layer links here")
    async with open_store(tmp_path):
        assert os.listdir(tmp_path / "ingest") == []
        assert os.listdir(tmp_path / "layers") == []
        assert os.listdir(tmp_path / "files" / "sha256") == []


async def test_a_layer_whose_files_are_gone_is_forgotten_with_its_images(tmp_path):
    layer = layer_record("one")
    async with open_store(tmp_path) as store:
        stored = await store.records.add_layer(layer)
        await store.records.add_image(image_record([stored]), "example.com/a:1", stored.digest)
        assert len(await store.records.images()) == 1
    async with open_store(tmp_path) as store:
        assert await store.records.layers() == []
        assert await store.records.images() == []


async def test_names_move_and_images_lose_them(tmp_path):
    async with open_store(tmp_path) as store:
        records = store.records
        layer = await records.add_layer(layer_record("one"))
        first = await records.add_image(image_record([layer], "a"), "example.com/x:1", layer.digest)
        assert first.names == ("example.com/x:1",)
        second = await records.add_image(
            image_record([layer], "b"), "example.com/x:1", layer.digest
        )
        assert second.names == ("example.com/x:1",)
        unnamed = Thing(ThingKind.IMAGE, first.manifest)
        assert unreachable(await records.world(dict)) == {unnamed}
        assert [i.manifest for i in store.images if i.names] == [second.manifest]


async def test_slots_are_never_given_twice(tmp_path):
    async with open_store(tmp_path) as store:
        records = store.records
        first = await records.add_layer(layer_record("one"))
        await records.forget_layer(first.digest)
        second = await records.add_layer(layer_record("one"))
        assert second.slot > first.slot > 0
        view_id = image_record([second]).view_id
        assert await records.view_slot(view_id) == await records.view_slot(view_id)


async def test_a_damaged_database_says_what_to_do(tmp_path):
    async with open_store(tmp_path):
        pass
    (tmp_path / "imgvol.db").write_bytes(b"not a database" * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"imgvol.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(StoreDamaged) as caught:
        async with open_store(tmp_path):
            pass
    assert "imgvol fsck --repair" in caught.value.hint

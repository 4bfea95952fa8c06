"""A database whose log was cut, as a power failure may leave it."""

import shutil

import pytest

from imgvol.content.store import open_store
from imgvol.oci.digest import Digest

VIEWS = [Digest.of(bytes([number])) for number in range(40)]
STEP = 997  # in the middle of frames and of their headers, mostly


@pytest.mark.fault("F30")
async def test_a_log_that_is_cut_anywhere_loses_whole_transactions_only(tmp_path):
    """Each transaction gives one view the next number; so what is there tells where the cut was."""
    kept = tmp_path / "kept"
    async with open_store(tmp_path / "root") as store:
        for view in VIEWS:
            await store.records.view_slot(view)
        # As it is on the disk while a daemon runs: nothing is in the database's own file yet.
        shutil.copytree(tmp_path / "root", kept)
    log = kept / "imgvol.db-wal"
    whole = log.stat().st_size
    assert whole > 10 * 4096
    found = []
    for size in [*range(0, whole, STEP), whole]:
        cut = tmp_path / "cut"
        shutil.copytree(kept, cut)
        with open(cut / log.name, "r+b") as file:
            file.truncate(size)
        found.append(await _views_left(cut))
        shutil.rmtree(cut)
    assert found == sorted(found), "a longer log holds no less"
    assert found[0] == 0
    assert found[-1] == len(VIEWS)
    assert len(set(found)) > 10


async def _views_left(root):
    """How many views a store knows; they are the first ones."""
    async with open_store(root) as store:
        world = await store.records.world(dict)
        known = {thing.digest for thing in world.stored}
        assert await store.records.check() == []
    count = len(known)
    assert known == set(VIEWS[:count])
    return count

"""`fsck` without a daemon: takes the store's lock, checks, and repairs what can be repaired."""

import os
from dataclasses import dataclass
from pathlib import Path

import trio

from imgvol.config import Config
from imgvol.content.check import Finding, Remedy, check_store, mend
from imgvol.content.database import examine, open_database
from imgvol.content.layout import StoreLayout
from imgvol.content.ownership import own_directory
from imgvol.content.rebuild import rebuild_database
from imgvol.content.records import Records
from imgvol.volumes.check import check_mounts
from imgvol.volumes.unmounting import detach_dead_mounts


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check has found.

    Attributes:
        repaired: What was wrong and is not any more.
        wrong: What is wrong.
        set_aside: Where a damaged database is now.
    """

    repaired: tuple[Finding, ...] = ()
    wrong: tuple[Finding, ...] = ()
    set_aside: Path | None = None


async def check(config: Config, *, repair: bool) -> CheckReport:
    """Checks a store that no daemon uses, and with `repair` mends it.

    Raises:
        StoreLocked: A daemon has begun to use it meanwhile.
        LocalError: The directory is not ours alone, or the disk fails.
    """
    if not config.root.exists():
        return CheckReport()
    lock = await trio.to_thread.run_sync(own_directory, config.root)
    try:
        layout = StoreLayout(config.root)
        await trio.to_thread.run_sync(layout.make)
        return await _check(config, layout, repair=repair)
    finally:
        os.close(lock)


async def _check(config: Config, layout: StoreLayout, *, repair: bool) -> CheckReport:
    mounts = check_mounts(config.views, (), is_served=False)
    stuck: list[Finding] = []
    if mounts and repair:
        await trio.to_thread.run_sync(detach_dead_mounts, config.views)
        stuck = check_mounts(config.views, (), is_served=False)
    damage = [
        Finding(subject="database", problem=problem, remedy=Remedy.REBUILD)
        for problem in await trio.to_thread.run_sync(examine, layout.database)
    ]
    aside = None
    if damage:
        if not repair:
            # Without records there is nothing to compare the files with.
            return CheckReport(wrong=(*damage, *mounts))
        aside = await rebuild_database(layout)
    async with open_database(layout.database) as database:
        records = Records(database)
        wrong = await check_store(layout, records)
        if not repair:
            return CheckReport(wrong=(*wrong, *mounts))
        repaired: list[Finding] = []
        # What is removed may have been all that something else was there for.
        while mendable := [finding for finding in wrong if finding.can_be_mended]:
            for finding in mendable:
                await mend(layout, records, finding)
            wrong = await check_store(layout, records)
            stubborn = [finding for finding in mendable if finding in wrong]
            repaired += [finding for finding in mendable if finding not in stubborn]
            if stubborn:
                break
        await database.save_copy(layout.database_copy)
    detached = [finding for finding in mounts if finding not in stuck]
    return CheckReport(
        repaired=(*damage, *detached, *repaired), wrong=(*wrong, *stuck), set_aside=aside
    )

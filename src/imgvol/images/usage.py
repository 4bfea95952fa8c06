"""How much disk the store takes: measured in the background, told from memory.

Every period, first the layers' directories are listed, then each is looked at, in a thread of its
own. Neither asks the database: nobody waits for a measurement, and it waits for nobody. A layer
that is complete does not change any more and is measured once; what can grow or shrink is measured
each time: lazy layers, documents, work in progress, the database. Measured are blocks and inodes,
as `du` does: holes count nothing, and a file that several layers link to counts once.

What has gone is dropped by mark and sweep: each round has a number, and what it has not met is
forgotten. What could not be measured this time keeps its last value, and is not forgotten for it.
"""

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import trio

from imgvol import limits
from imgvol.content import inventory
from imgvol.content.durable import translate_os_errors
from imgvol.content.store import Store
from imgvol.errors import ImgvolError

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A few ms of work, after which a daemon that stops need not wait any more.
_PARTS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemUsage:
    """What the store takes of one filesystem.

    Attributes:
        timestamp_ns: When the oldest part of it was looked at: nanoseconds since the epoch.
        mountpoint: A directory on that filesystem, the store's own.
        used_bytes: Blocks of everything in it.
        inodes_used: Files and directories.
    """

    timestamp_ns: int
    mountpoint: str
    used_bytes: int
    inodes_used: int


class _Part(NamedTuple):
    """Something to be measured.

    Attributes:
        identity: Of a layer's directory: tells it from another that was there before.
        is_final: Whether it never changes.
        is_flat: Without what lies in its subdirectories.
    """

    path: str
    identity: tuple[int, ...] = ()
    is_final: bool = False
    is_flat: bool = False


@dataclass(slots=True, kw_only=True)
class _Measure:
    """What a part has.

    Attributes:
        size: Bytes of what is its own.
        inodes: How many of those.
        linked: Bytes of files that others may link to, by device and inode.
        at: When it was looked at: nanoseconds since the epoch.
        round: In which round it was met last.
    """

    size: int
    inodes: int
    linked: Mapping[tuple[int, int], int]
    at: int = 0
    round: int = 0


@dataclass(eq=False)
class UsageMeter:
    """Measures one store. One per daemon."""

    store: Store
    _measures: dict[_Part, _Measure] = field(default_factory=dict)
    _round: int = 0
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _usage: FilesystemUsage = field(init=False)

    def __post_init__(self) -> None:
        # Nothing is known yet: that is told as nothing, as of now.
        self._usage = self._sum(time.time_ns())

    def filesystem_usage(self) -> Sequence[FilesystemUsage]:
        """What each backend takes, the default one first: there is one. From memory."""
        return (self._usage,)

    async def run(self, *, period: float = limits.USAGE_PERIOD) -> None:
        """Measures for ever: every period if that is quick, less often if it takes its time."""
        pause = period
        while True:
            began = trio.current_time()
            try:
                await self.measure()
            except ImgvolError as exc:
                log.warning("what the store takes is not measured: %s", exc)
            except Exception:  # in the daemon's nursery it would end every view
                log.exception("what the store takes is not measured: a defect")
            cost = trio.current_time() - began
            pause += limits.USAGE_SMOOTHING * (period - cost - pause)
            await trio.sleep(max(pause, period / 2))

    async def measure(self) -> None:
        """One round.

        Raises:
            LocalError: The store's directories cannot be read; what was measured stays.
        """
        async with self._turn:
            await self._measure_all()

    async def _measure_all(self) -> None:
        mark = self.store.space.begin_measuring()
        parts = await self._in_thread(self._parts)
        self._round += 1
        now = time.time_ns()
        for start in range(0, len(parts), _PARTS_AT_ONCE):
            await self._in_thread(self._measure, parts[start : start + _PARTS_AT_ONCE], now)
        await self._in_thread(self._sum_up, now)
        free = await self._in_thread(_free_bytes, str(self.store.layout.root))
        self.store.space.settle(self._usage.used_bytes, mark, free)

    def _parts(self) -> list[_Part]:
        layout = self.store.layout
        homes = inventory.homes(layout)
        flat = [_Part(path=str(path), is_flat=True) for path in (layout.root, *homes)]
        whole = (layout.blobs, layout.shared_files.parent, layout.ingest)
        with translate_os_errors("list the store's layers"):
            layers = [
                part for home in homes for part in _layers_in(home, is_final=home == layout.layers)
            ]
        return [*flat, *(_Part(path=str(path)) for path in whole), *layers]

    def _measure(self, parts: Sequence[_Part], now: int) -> None:
        for part in parts:
            known = self._measures.get(part)
            try:
                if known is None or not part.is_final:
                    known = self._measures[part] = _look_at(part)
                known.at = now
            except FileNotFoundError:
                continue  # removed in this moment
            except OSError as exc:
                log.warning("%s is not measured: %s", part.path, exc)
                if known is None:
                    continue
            known.round = self._round

    def _sum_up(self, now: int) -> None:
        """Forgets what this round has not met, and adds up the rest."""
        self._measures = {p: m for p, m in self._measures.items() if m.round == self._round}
        self._usage = self._sum(now)

    async def _in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)

    def _sum(self, now: int) -> FilesystemUsage:
        linked: dict[tuple[int, int], int] = {}
        for measure in self._measures.values():
            linked.update(measure.linked)
        measures = self._measures.values()
        return FilesystemUsage(
            timestamp_ns=min((measure.at for measure in measures), default=now),
            mountpoint=str(self.store.layout.root),
            used_bytes=sum(measure.size for measure in measures) + sum(linked.values()),
            inodes_used=sum(measure.inodes for measure in measures) + len(linked),
        )


def _free_bytes(path: str) -> int:
    with translate_os_errors("look at what is free"):
        disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _layers_in(home: Path, *, is_final: bool) -> Iterator[_Part]:
    for entry in os.scandir(home):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed in this moment
            continue
        # A layer that is complete is put in its place as a whole, and never changed there.
        identity = (status.st_ino, status.st_ctime_ns) if is_final else ()
        yield _Part(path=entry.path, identity=identity, is_final=is_final)


def _look_at(part: _Part) -> _Measure:
    """Looks at every file of a part. Blocks.

    Raises:
        OSError: Its directory cannot be read; FileNotFoundError: it is not there.
    """
    size = inodes = 0
    linked: dict[tuple[int, int], int] = {}
    for status in _statuses(part):
        taken = status.st_blocks * 512  # stat(2): whatever the filesystem's own blocks are
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            linked[status.st_dev, status.st_ino] = taken
        else:
            size += taken
            inodes += 1
    return _Measure(size=size, inodes=inodes, linked=linked)


def _statuses(part: _Part) -> Iterator[os.stat_result]:
    status = os.lstat(part.path)
    yield status
    waiting = [part.path] if stat.S_ISDIR(status.st_mode) else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and part.is_flat:
                    continue
                try:
                    yield entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # replaced or removed in this moment
                    continue
                if is_directory:
                    waiting.append(entry.path)

"""Keeps the store up with the preload directory: what is there at the start, and what comes later.

Files that are finished wait for their turn in one of two lanes, archives in one and lists in the
other: a registry that does not answer holds up no archive. In each lane one file follows another,
so that of two files with the same names the later one has them.

A file is worked on once for each of its forms, as size and time of change tell them apart; one that
fails is told of once, and tried again when it changes.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from imgvol import limits
from imgvol.content.durable import translate_os_errors
from imgvol.errors import ImgvolError, InternalError, LocalError
from imgvol.images.preload.archives import ImportFile
from imgvol.images.preload.loading import Images, Loader, PreloadSettings
from imgvol.images.preload.scan import (
    FileKind,
    Look,
    Scan,
    is_text,
    is_within,
    kind_of,
    look,
    printable,
    scan,
)
from imgvol.images.preload.settling import Settling
from imgvol.images.preload.stamp import Stamp
from imgvol.images.preload.status import FileState, Outcome, PreloadedFile, PreloadStatus
from imgvol.images.preload.watch import DirectoryWatch, Notice, NoticeKind, open_watch

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """What is known of a file. `stamp` is of the form that has been worked on."""

    kind: FileKind
    outcome: Outcome | None = None
    state: FileState = FileState.WAITING
    stamp: Stamp | None = None
    at: float = 0.0

    def enter(self, state: FileState) -> None:
        self.state, self.at = state, time.time()


class _Lane:
    """Files that wait for their turn, each once."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._filled = trio.Event()
        self.current: str | None = None

    def put(self, path: str) -> None:
        self._waiting[path] = None
        self._filled.set()

    async def take(self) -> str:
        while not self._waiting:
            self._filled = trio.Event()
            await self._filled.wait()
        self.current = next(iter(self._waiting))
        del self._waiting[self.current]
        return self.current

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting) or self.current is not None


class Preloader:
    """Watches the preload directory and loads what is in it. One per daemon; on the event loop.

    Args:
        settings: The habits.
        images: The images that are here.
        import_file: Imports an archive.

    Attributes:
        ready: Set when all that was there at the start has been dealt with.
    """

    def __init__(self, settings: PreloadSettings, images: Images, import_file: ImportFile) -> None:
        self._directory = os.path.normpath(settings.directory)
        self._loader = Loader(settings, images, import_file)
        self._files: dict[str, _File] = {}
        self._settling = Settling()
        self._lanes = {kind: _Lane() for kind in FileKind}
        self._problems: dict[str, str] = {}
        # What was there at the start and has not been dealt with; None: there was no look yet.
        self._first: set[str] | None = None
        # One that looks at everything, and one for each lane.
        self._threads = trio.CapacityLimiter(1 + len(FileKind))
        self._is_watched = False
        # What is waited for can be looked at before its time.
        self._pause = trio.CancelScope()
        self._imported = self._unchanged = self._failed = 0
        self.ready = trio.Event()

    async def run(self) -> None:
        """Works until it is cancelled."""
        await self._loader.begin()
        async with trio.open_nursery() as nursery:
            for lane in self._lanes.values():
                nursery.start_soon(self._work, lane)
            try:
                async with open_watch(self._directory) as watch:
                    await self._follow(watch)
            except LocalError as exc:
                log.warning("files in %s are looked for now and then: %s", self._directory, exc)
                await self._follow(None)

    @property
    def is_busy(self) -> bool:
        """Whether any file is waited for or worked on."""
        is_working = any(lane.is_busy for lane in self._lanes.values())
        return self._first is None or is_working or self._settling.next_due() is not None

    def status(self) -> PreloadStatus:
        """What has become of the files; from memory."""
        return PreloadStatus(
            directory=self._directory,
            is_watched=self._is_watched,
            is_ready=self.ready.is_set(),
            is_busy=self.is_busy,
            imported=self._imported,
            unchanged=self._unchanged,
            failed=self._failed,
            problems=tuple(f"{path}: {why}" for path, why in sorted(self._problems.items())),
            files=tuple(_shown(path, file) for path, file in sorted(self._files.items())),
        )

    # --- what the directory says ----------------------------------------------------------------

    async def _follow(self, watch: DirectoryWatch | None) -> None:
        next_look = -math.inf
        while True:
            if trio.current_time() >= next_look:
                await self._look_at_everything(watch)
                now = trio.current_time()
                next_look = math.inf if self._is_watched else now + limits.PRELOAD_RETRY
            await self._look_at_due()
            due = self._settling.next_due()
            until = next_look if due is None else min(due, next_look)
            with trio.CancelScope(deadline=until) as self._pause:
                if await self._listen(watch):
                    next_look = trio.current_time()

    async def _listen(self, watch: DirectoryWatch | None) -> bool:
        """Waits for something to happen; returns whether everything has to be looked at again."""
        if watch is None:
            await trio.sleep_forever()
        told = await watch.wait()
        if told.has_overflown:
            log.info("more has happened in %s than the kernel tells", self._directory)
        for notice in told.files:
            self._hear(notice)
        return told.is_stale

    def _hear(self, notice: Notice) -> None:
        path, now = notice.path, trio.current_time()
        if kind_of(path) is None or not is_text(path):
            return
        if notice.kind is NoticeKind.CLOSED:
            self._settling.close(path, now)
        elif notice.kind is NoticeKind.ARRIVED:
            self._settling.arrive(path, now)
        else:
            self._settling.change(path, now)

    async def _look_at_everything(self, watch: DirectoryWatch | None) -> None:
        look_around = partial(scan, self._directory) if watch is None else watch.scan
        found = await trio.to_thread.run_sync(look_around, limiter=self._threads)
        self._is_watched = watch is not None and not found.unwatched
        self._note_problems({**found.problems, **found.unwatched})
        now = trio.current_time()
        for path, stamp in found.files.items():
            file = self._files.get(path)
            if file is None or file.stamp != stamp:
                self._settling.change(path, now)
        for path in self._files.keys() - found.files.keys():
            # What cannot be looked at has not gone.
            if not any(is_within(path, place) for place in found.problems):
                self._settling.change(path, now)
        if self._first is None:
            await self._begin(found)

    async def _begin(self, found: Scan) -> None:
        """After the first look."""
        if not found.problems:
            try:
                await self._loader.keep(found.files)
            except ImgvolError as exc:
                log.warning("images of files that have gone are still pinned: %s", exc)
        self._first = set(found.files)
        self._dealt_with(None)

    def _note_problems(self, problems: dict[str, str]) -> None:
        for path, reason in sorted(problems.items()):
            if self._problems.get(path) != reason:
                log.warning("in the preload directory: %s: %s", printable(path), reason)
        self._problems = problems

    async def _look_at_due(self) -> None:
        """Passes on the files that are finished, and those that have gone."""
        paths = self._settling.due(trio.current_time())
        if not paths:
            return
        looks = await trio.to_thread.run_sync(_look_at, paths, limiter=self._threads)
        now, wall = trio.current_time(), time.time_ns()
        for path, found in looks.items():
            self._files.setdefault(path, _File(kind_of(path) or FileKind.ARCHIVE))
            if found is not None and found.stamp is not None:
                if not self._settling.is_settled(path, found, now=now, wall_ns=wall):
                    # Somebody is still writing it: nobody waits for that to be ready.
                    self._dealt_with(path)
                    continue
            else:
                self._settling.forget(path)
            self._lanes[self._files[path].kind].put(path)

    # --- what is done about it ------------------------------------------------------------------

    async def _work(self, lane: _Lane) -> None:
        while True:
            path = await lane.take()
            try:
                await self._deal_with(path)
            finally:
                lane.current = None
            self._dealt_with(path)

    def _dealt_with(self, path: str | None) -> None:
        if self._first is not None:
            self._first.discard(path or "")
            if not self._first:
                self.ready.set()

    async def _deal_with(self, path: str) -> None:
        file = self._files.get(path)
        if file is None:
            return
        try:
            with translate_os_errors("look at the file"):
                found = await trio.to_thread.run_sync(look, path, limiter=self._threads)
        except LocalError as exc:
            self._end(path, file, _failure(exc))
            return
        stamp = found.stamp
        if stamp is None:
            await self._drop(path)
        elif stamp != file.stamp or (file.outcome is not None and file.outcome.is_retryable):
            await self._load(path, file, stamp)
        elif file.state is FileState.WAITING:
            file.enter(file.outcome.state if file.outcome else FileState.FAILED)

    async def _load(self, path: str, file: _File, stamp: Stamp) -> None:
        file.stamp = stamp
        file.enter(FileState.WORKING)
        try:
            outcome = await self._loader.load(path, file.kind, stamp)
        except ImgvolError as exc:
            outcome = _failure(exc)
        except Exception as exc:
            # Whatever is wrong with one file, or with us, the others have their turn.
            log.exception("while loading %s", printable(path))
            outcome = _failure(InternalError(f"{type(exc).__name__}: {exc}"))
        if outcome.state is FileState.FAILED and await self._has_changed(path, stamp):
            # It was not finished: what was wrong with a part of it says nothing.
            file.stamp = None
            file.enter(FileState.WAITING)
            self._settling.change(path, trio.current_time())
            self._pause.cancel()
            return
        self._end(path, file, outcome)

    async def _has_changed(self, path: str, stamp: Stamp) -> bool:
        looks = await trio.to_thread.run_sync(_look_at, [path], limiter=self._threads)
        found = looks[path]
        return found is not None and found.stamp not in {None, stamp}

    def _end(self, path: str, file: _File, outcome: Outcome) -> None:
        before = file.outcome
        if outcome.state is FileState.FAILED and before is not None:
            # It still has them.
            outcome = replace(outcome, images=before.images)
        is_known = file.stamp is None and before == outcome
        file.outcome = outcome
        file.enter(outcome.state)
        if is_known:
            return
        self._imported += outcome.state is FileState.IMPORTED
        self._unchanged += outcome.state is FileState.UNCHANGED
        self._failed += outcome.state in {FileState.FAILED, FileState.PARTIAL}
        if outcome.problems:
            more = len(outcome.problems) - 1
            rest = f" (and {more} more)" if more else ""
            log.warning(
                "%s: %s: %s%s", printable(path), outcome.state.value, outcome.problems[0], rest
            )
        else:
            log.info("%s: %s, %d images", printable(path), outcome.state.value, len(outcome.images))

    async def _drop(self, path: str) -> None:
        del self._files[path]
        try:
            await self._loader.drop(path)
        except ImgvolError as exc:
            log.warning("%s has gone, its images are still pinned: %s", printable(path), exc)
        else:
            log.info("%s has gone", printable(path))


def _look_at(paths: Sequence[str]) -> dict[str, Look | None]:
    """Looks at files; None: it may not be looked at."""
    looks: dict[str, Look | None] = {}
    for path in paths:
        try:
            looks[path] = look(path)
        except OSError:
            looks[path] = None
    return looks


def _failure(exc: ImgvolError) -> Outcome:
    is_retryable = exc.retryable or isinstance(exc, LocalError)
    return Outcome(state=FileState.FAILED, problems=(str(exc),), is_retryable=is_retryable)


def _shown(path: str, file: _File) -> PreloadedFile:
    outcome = file.outcome or Outcome(state=file.state)
    return PreloadedFile(
        path=path,
        kind=file.kind,
        state=file.state,
        size=file.stamp.size if file.stamp else None,
        images=outcome.images,
        problems=outcome.problems[: limits.PRELOAD_PROBLEMS],
        problem_count=len(outcome.problems),
        at=file.at,
    )

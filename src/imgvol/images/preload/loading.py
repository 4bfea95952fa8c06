"""One file of the preload directory, brought into the store: imported, named, pinned.

What a file brings is pinned as long as it is there, by an owner that is the file: pins of users, of
the configuration and of other files are other owners'. A file that cannot be read leaves the pins
of its last good form: images that a machine without a network runs on are not given up for a copy
that went wrong.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from imgvol import limits
from imgvol.content.durable import translate_os_errors
from imgvol.content.records import ImageRecord
from imgvol.errors import ImgvolError, LocalError
from imgvol.images.catalog import Catalog, choose
from imgvol.images.preload.archives import ImportFile
from imgvol.images.preload.cache_file import CACHE_NAME, CacheEntry, read_cache, write_cache
from imgvol.images.preload.lists import ImageList, ListedImage, parse_list
from imgvol.images.preload.retag import ExtraRegistry, plan_retags
from imgvol.images.preload.scan import FileKind, read_bounded
from imgvol.images.preload.stamp import Stamp
from imgvol.images.preload.status import FileState, Outcome
from imgvol.images.pull import PullProgress
from imgvol.images.pulls import PullOptions
from imgvol.images.resolve import wanted_platform

log = logging.getLogger(__name__)

# What our pins' owners begin with; the file's path follows.
OWNER: Final = "preload:"


class Images(Protocol):
    """What is needed of `images.service.ImageService`."""

    @property
    def catalog(self) -> Catalog:
        """Which images are here."""

    async def pull(
        self, image: str, *, options: PullOptions, progress: PullProgress
    ) -> ImageRecord:
        """Makes an image ready, by mirrors and logins as they are configured."""

    async def copy_names(self, copies: Collection[tuple[str, str]]) -> None:
        """Gives each first name the meaning of the second, all at once."""

    async def pin_only(self, subjects: Collection[str], owner: str) -> None:
        """Makes these all that an owner pins."""

    async def pin_owners(self, prefix: str) -> Sequence[str]:
        """Who pins anything, of those whose name begins so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadSettings:
    """The habits of preloading.

    Attributes:
        directory: Absolute. It need not be there.
        registries: Under which images get names, too.
        keeps_pins: Whether images of files that have gone stay pinned until the next start.
    """

    directory: str
    registries: tuple[ExtraRegistry, ...] = ()
    keeps_pins: bool = False


class Loader:
    """Brings files into the store. On the event loop.

    Args:
        settings: The habits.
        images: The images that are here.
        import_file: Imports an archive.
    """

    def __init__(self, settings: PreloadSettings, images: Images, import_file: ImportFile) -> None:
        self._settings = settings
        self._images = images
        self._import_file = import_file
        self._cache: dict[str, CacheEntry] = {}
        self._pulls = trio.CapacityLimiter(limits.PRELOAD_PULLS_AT_ONCE)
        self._threads = trio.CapacityLimiter(len(FileKind))

    async def begin(self) -> None:
        """Reads the cache file, if there is one. Call first."""
        directory = self._settings.directory
        try:
            with translate_os_errors(f"read {directory}/{CACHE_NAME}"):
                found = await trio.to_thread.run_sync(read_cache, directory, limiter=self._threads)
        except ImgvolError as exc:
            log.warning("%s is passed over: %s", CACHE_NAME, exc)
        else:
            self._cache = found or {}

    async def keep(self, paths: Collection[str]) -> None:
        """Ends the pins of files that are not among these, and forgets that they were imported."""
        wanted = {OWNER + path for path in paths}
        for owner in await self._images.pin_owners(OWNER):
            if owner not in wanted:
                await self._images.pin_only((), owner)
        gone = self._cache.keys() - set(paths)
        for path in gone:
            del self._cache[path]
        if gone:
            await self._save_cache()

    async def load(self, path: str, kind: FileKind, stamp: Stamp) -> Outcome:
        """Brings a file into the store.

        Raises:
            ImgvolError: Nothing has come of it; what came of an earlier form stays.
        """
        if kind is FileKind.LIST:
            return await self._pull_list(path)
        entry = self._cache.get(path)
        if entry is not None and entry.is_of(stamp) and self._are_here(entry.images):
            problems = await self._name_and_pin(path, entry.images or ())
            return Outcome(state=FileState.UNCHANGED, images=entry.images or (), problems=problems)
        imported = await self._import_file(path, OWNER + path)
        problems = await self._name_and_pin(path, imported.images)
        self._cache[path] = CacheEntry.of(stamp, imported.images)
        await self._save_cache()
        return Outcome(
            state=FileState.IMPORTED,
            images=imported.images,
            problems=(*imported.problems, *problems),
        )

    async def drop(self, path: str) -> None:
        """A file has gone: its images are not pinned by it any more. They stay otherwise.

        Raises:
            ImgvolError: The records cannot be written.
        """
        if not self._settings.keeps_pins:
            await self._images.pin_only((), OWNER + path)
        if self._cache.pop(path, None) is not None:
            await self._save_cache()

    def _are_here(self, images: tuple[str, ...] | None) -> bool:
        catalog = self._images.catalog
        return images is not None and all(
            catalog.search(image, is_listed=False).images for image in images
        )

    async def _name_and_pin(self, path: str, images: Sequence[str]) -> tuple[str, ...]:
        """Names and pins what a file has brought; returns what gets no other name, and why."""
        plan = await trio.to_thread.run_sync(
            plan_retags, images, self._settings.registries, limiter=self._threads
        )
        await self._images.copy_names(plan.copies)
        extra = [name for name, _ in plan.copies]
        await self._images.pin_only([*images, *extra], OWNER + path)
        return plan.problems

    async def _save_cache(self) -> None:
        directory = self._settings.directory
        try:
            with translate_os_errors(f"write {directory}/{CACHE_NAME}"):
                await trio.to_thread.run_sync(
                    write_cache, directory, dict(self._cache), limiter=self._threads
                )
        except LocalError as exc:  # files are imported again after a restart: no more than that
            log.warning("%s", exc)

    # --- lists ----------------------------------------------------------------------------------

    async def _pull_list(self, path: str) -> Outcome:
        """Pulls what a list names and is not here; whatever works is named and pinned."""
        with translate_os_errors("read the list"):
            wanted = await trio.to_thread.run_sync(_read_list, path, limiter=self._threads)
        failures: dict[int, ImgvolError] = {}
        async with trio.open_nursery() as nursery:
            for image in wanted.images:
                nursery.start_soon(self._obtain, image, failures)
        images = tuple(image.name for image in wanted.images if image.line not in failures)
        untagged = await self._name_and_pin(path, images)
        told = [(line, f"line {line}: {exc}") for line, exc in failures.items()]
        told += [(bad.line, str(bad)) for bad in wanted.bad]
        return Outcome(
            state=_state_of_list(images, is_whole=not told),
            images=images,
            problems=(*(text for _, text in sorted(told)), *untagged),
            is_retryable=any(exc.retryable for exc in failures.values()),
        )

    async def _obtain(self, image: ListedImage, failures: dict[int, ImgvolError]) -> None:
        async with self._pulls:
            if self._is_here(image.name):
                return
            try:
                await self._images.pull(image.name, options=PullOptions(), progress=PullProgress())
            except ImgvolError as exc:
                failures[image.line] = exc

    def _is_here(self, name: str) -> bool:
        """Whether an image is here as a whole: no registry is asked what its name means now."""
        found = self._images.catalog.search(name, is_listed=True)
        meant = choose(found.images, wanted_platform(None))
        return meant is not None and meant.is_complete


async def forget_pins(images: Images) -> None:
    """Ends the pins of all files: there is no preload directory any more."""
    for owner in await images.pin_owners(OWNER):
        await images.pin_only((), owner)


def _read_list(path: str) -> ImageList:
    data, is_cut = read_bounded(path, limits.PRELOAD_LIST_SIZE)
    return parse_list(data, is_cut=is_cut)


def _state_of_list(images: Sequence[str], *, is_whole: bool) -> FileState:
    if is_whole:
        return FileState.IMPORTED
    return FileState.PARTIAL if images else FileState.FAILED

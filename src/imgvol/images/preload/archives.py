"""Archives of the preload directory, imported."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imgvol.errors import InvalidArgument
from imgvol.images.importing import Importer, ImportReport
from imgvol.images.pull import PullProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an archive has brought.

    Attributes:
        images: Names, and digests of manifests that have none, each once.
        problems: What the archive lists and is not here, and why.
    """

    images: tuple[str, ...]
    problems: tuple[str, ...] = ()


ImportFile = Callable[[str, str], Awaitable[Imported]]
"""Imports the archive at a path, for an owner of pins: all of its images, or none.

Raises ImgvolError.
"""


class ArchiveImport:
    """Imports archives as the preload directory wants it.

    Args:
        importer: Of the store.
        links: Whether layers stay in archives that can be read where they lie.
    """

    def __init__(self, importer: Importer, *, links: bool) -> None:
        self._importer = importer
        self._links = links

    async def __call__(self, path: str, owner: str) -> Imported:
        """See ImportFile."""
        if self._links:
            try:
                return _summary(await self._import(path, owner, link=True))
            except InvalidArgument:
                pass  # it is compressed, for one: then it is copied
        return _summary(await self._import(path, owner, link=False))

    async def _import(self, path: str, owner: str, *, link: bool) -> ImportReport:
        return await self._importer.import_archive(
            path, link=link, pin_owner=owner, progress=PullProgress()
        )


def _summary(report: ImportReport) -> Imported:
    names = [name for image in report.images for name in image.names or (str(image.manifest),)]
    lacking = [one for one in report.passed_over if one.is_whole]
    return Imported(
        images=tuple(dict.fromkeys(names)),
        problems=tuple(f"{one.what} is not here: {one.reason}" for one in lacking),
    )

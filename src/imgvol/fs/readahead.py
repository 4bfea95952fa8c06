"""How far the kernel reads ahead in our files.

Far, as a rule: 1 MiB gives five times the sequential throughput of 128 KiB. But while files come
over a slow line, each page that a program touches would make it wait for a megabyte around it.

The setting is the whole filesystem's, and a file keeps what it found when it was opened.
"""

import logging
from pathlib import Path
from typing import Final

import trio

from imgvol import limits
from imgvol.images.views import Views

log = logging.getLogger(__name__)

BDI: Final = Path("/sys/class/bdi")


class KernelReadahead:
    """The setting of one filesystem. Used on the event loop.

    Args:
        device: Its device number, as major:minor; None: there is no such filesystem.
    """

    def __init__(self, device: str | None) -> None:
        self._setting = BDI / device / "read_ahead_kb" if device else None
        self._current = 0

    async def adjust(self, views: Views) -> None:
        """Makes it what the open layers want."""
        # Whoever traces wants to know what was asked for, and not what lies around it.
        is_short = views.layers.has_slow or views.recordings is not None
        wanted = limits.READAHEAD_SLOW_KIB if is_short else limits.READAHEAD_KIB
        if wanted != self._current and self._setting is not None:
            self._current = wanted
            await trio.to_thread.run_sync(self._write, self._setting, wanted)

    async def follow(self, views: Views) -> None:
        """Goes on adjusting it, as layers become complete and lines become known."""
        while True:
            await trio.sleep(limits.READAHEAD_CHECK)
            await self.adjust(views)

    def _write(self, setting: Path, kib: int) -> None:
        try:
            setting.write_text(str(kib))
        except OSError as exc:
            # Not root, or the filesystem has gone: asking again would not help.
            self._setting = None
            log.info("readahead stays at the kernel's default: %s", exc)

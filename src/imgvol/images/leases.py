"""Leases at run time: made, renewed, listed, dropped, and noticed when they have run out.

A lease that ends by itself has a duration, counted by a clock that nobody can set: what is left of
it is written down now and then and at the daemon's end, and counted on from there by the next
daemon. Wall time is only a record.

What becomes of volumes when their sandbox's lease ends is for the room above to know: this one
forgets leases, and with them what they keep.
"""

import logging
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Final

import trio

from imgvol import limits
from imgvol.content.records import LeaseRecord, Records
from imgvol.errors import ImgvolError, RemoteError
from imgvol.oci.digest import Digest

log = logging.getLogger(__name__)

# No sandbox's ID has a colon.
_PULL: Final = "pull:"


class Leases:
    """The leases. One per daemon; used on the event loop.

    Args:
        records: Where they are kept.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._deadlines: dict[str, float] = {}
        self._deadlines_changed = trio.Event()
        # A record and its deadline change together.
        self._changing = trio.Lock()
        # Several of one image can be under way: for other names of it, or with other logins.
        self._pulls = Counter[str]()

    async def recover(self) -> None:
        """Counts on from what was left of each lease. Call once, before anything else."""
        async with self._changing:
            for lease in await self._records.leases():
                self._start_clock(lease.id, lease.remaining)

    async def ensure(
        self,
        lease_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        duration: float | None = None,
        images: Collection[Digest] = (),
        content: Collection[Digest] = (),
    ) -> LeaseRecord:
        """Makes a lease, or returns the one that has this ID, as it is.

        Args:
            lease_id: A sandbox's ID, or a name of its own.
            labels: What to find it by.
            duration: Seconds that it lasts; None: until it is dropped.
            images: Manifests of images here that it keeps, also if it exists already.
            content: Other digests that it keeps.

        Raises:
            NotFound: One of the images is not here.
        """
        wanted = LeaseRecord(
            id=lease_id,
            labels=labels or {},
            created_at=time.time(),
            duration=duration,
            digests=frozenset(content),
        )
        async with self._changing:
            return await self._ensure(wanted, images)

    async def _ensure(self, wanted: LeaseRecord, images: Collection[Digest] = ()) -> LeaseRecord:
        lease = await self._records.ensure_lease(wanted, images=images)
        if lease.id not in self._deadlines:
            self._start_clock(lease.id, lease.remaining)
        return self._counted(lease)

    async def renew(self, lease_id: str, duration: float | None) -> LeaseRecord:
        """Lets a lease last for so many seconds from now on; None: as it was to last before.

        Raises:
            NotFound: There is none.
        """
        async with self._changing:
            return await self._renew(lease_id, duration)

    async def _renew(self, lease_id: str, duration: float | None) -> LeaseRecord:
        lease = await self._records.renew_lease(lease_id, duration)
        self._start_clock(lease_id, lease.remaining)
        return self._counted(lease)

    async def list(self, label: str | None = None) -> list[LeaseRecord]:
        """The leases, the oldest first.

        Args:
            label: Only those that have it: `key`, or `key=value`.
        """
        leases = map(self._counted, await self._records.leases())
        if label is None:
            return list(leases)
        key, has_value, value = label.partition("=")
        return [
            lease
            for lease in leases
            if key in lease.labels and (not has_value or lease.labels[key] == value)
        ]

    async def exists(self, lease_id: str) -> bool:
        """Whether there is a lease with this ID."""
        return await self._records.lease(lease_id) is not None

    async def drop(self, lease_id: str) -> bool:
        """Forgets a lease that has no volumes; returns whether there is none (any more)."""
        async with self._changing:
            return await self._drop(lease_id)

    async def _drop(self, lease_id: str) -> bool:
        is_gone = await self._records.remove_lease(lease_id)
        if is_gone:
            self._start_clock(lease_id, None)
        return is_gone

    def has_ended(self, lease_id: str) -> bool:
        """Whether a lease has run out, and was not renewed meanwhile."""
        deadline = self._deadlines.get(lease_id)
        return deadline is not None and deadline <= trio.current_time()

    @asynccontextmanager
    async def pull(self, manifest: Digest, content: Collection[Digest]) -> AsyncIterator[None]:
        """Keeps what a pull brings, inside the block and, if the network ends it, for a day.

        The next pull of the same image then goes on from there, whatever is collected meanwhile.

        Args:
            manifest: Of the image; pulls of the same one share a lease.
            content: Digests of all that it needs.
        """
        lease_id = f"{_PULL}{manifest}"
        try:
            with self._pulling(lease_id):
                wanted = LeaseRecord(
                    id=lease_id,
                    created_at=time.time(),
                    duration=limits.PULL_LEASE,
                    digests=frozenset(content),
                )
                # In one turn: whoever removes the image lets go of it in another.
                async with self._changing:
                    await self._ensure(wanted)
                    await self._renew(lease_id, limits.PULL_LEASE)
                yield
        except RemoteError:
            raise
        except ImgvolError:
            # The image is bad, or there is no room: nothing of it is worth keeping.
            await self._drop_pull(lease_id)
            raise
        await self._drop_pull(lease_id)

    @contextmanager
    def _pulling(self, lease_id: str) -> Iterator[None]:
        """A pull that needs its lease, whatever becomes of others of the same image."""
        self._pulls[lease_id] += 1
        try:
            yield
        finally:
            self._pulls[lease_id] -= 1
            self._pulls = +self._pulls

    async def _drop_pull(self, lease_id: str) -> None:
        async with self._changing:
            if lease_id not in self._pulls:
                await self._drop(lease_id)

    async def holders(self, manifests: Collection[Digest]) -> Sequence[str]:
        """Which leases keep one of some images on purpose: those of pulls do not count."""
        return [
            lease.id
            for lease in await self._records.leases()
            if not lease.digests.isdisjoint(manifests) and not lease.id.startswith(_PULL)
        ]

    async def forget_pull(self, manifest: Digest) -> None:
        """Lets go of what a pull of an image has left, as the image is not wanted any more.

        One that is under way wants it.
        """
        await self._drop_pull(f"{_PULL}{manifest}")

    async def run(self, end: Callable[[str], Awaitable[None]]) -> None:
        """Ends leases as they run out, and writes down what is left of the others.

        Args:
            end: Ends one, unless it was renewed meanwhile. If it raises, the lease goes on, and
                another try is made a while later.
        """
        noted_at = trio.current_time()
        while True:
            await self._wait_deadline()
            for lease_id in [i for i in self._deadlines if self.has_ended(i)]:
                try:
                    await end(lease_id)
                except ImgvolError as exc:
                    log.warning("lease %s has run out and cannot be ended: %s", lease_id, exc)
                    self._start_clock(lease_id, limits.LEASE_RETRY)
            if trio.current_time() - noted_at >= limits.LEASE_NOTE:
                noted_at = trio.current_time()
                await self.note()

    async def note(self) -> None:
        """Writes down what is left of each lease."""
        async with self._changing:
            now = trio.current_time()
            left = {i: max(0.0, deadline - now) for i, deadline in self._deadlines.items()}
            if left:
                await self._records.note_remaining(left)

    async def _wait_deadline(self) -> None:
        """Returns when a lease has run out, and from time to time."""
        self._deadlines_changed = trio.Event()
        until = trio.current_time() + limits.LEASE_NOTE
        with trio.move_on_at(min(until, *self._deadlines.values(), until)):
            await self._deadlines_changed.wait()

    def _start_clock(self, lease_id: str, remaining: float | None) -> None:
        self._deadlines.pop(lease_id, None)
        if remaining is not None:
            self._deadlines[lease_id] = trio.current_time() + remaining
        self._deadlines_changed.set()

    def _counted(self, lease: LeaseRecord) -> LeaseRecord:
        """A lease with what is left of it at this moment."""
        deadline = self._deadlines.get(lease.id)
        left = None if deadline is None else max(0.0, deadline - trio.current_time())
        return replace(lease, remaining=left)

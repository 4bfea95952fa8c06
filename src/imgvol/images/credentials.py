"""Logins that came with pulls, kept for what those pulls have left for later.

A runtime sends a login once, with the pull. The rest of lazy layers is fetched hours after that, so
the login is kept: in memory and nowhere else, by repository, for the repositories whose layers were
pulled last. The next pull that needs one replaces it, which readers notice at their next refusal;
with the last lazy layer of a repository it goes. A daemon that has been restarted has only the
logins that are in files.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection

from imgvol import limits
from imgvol.registry.credentials import (
    Credential,
    CredentialSource,
    Lookup,
    StaticCredentials,
)


class Logins:
    """Who requests have said to be. One per daemon.

    Logins that need no request, configured or in files, come after these: see `open_source`.

    Attributes:
        kept: Those of pulls that have left something for later.
    """

    def __init__(self) -> None:
        self.kept = KeptLogins()

    def for_pull(self, credential: Credential | None) -> CredentialSource | None:
        """What a pull is done with, if a login came with it.

        One that came and is refused is not made up for by another: whoever sends a wrong password
        shall hear of it.
        """
        return None if credential is None else StaticCredentials(credential)

    def for_reads(self) -> CredentialSource:
        """What the rest of lazy layers is fetched with."""
        return self.kept


class KeptLogins:
    """The logins of pulls: a CredentialSource. Safe to use from any thread.

    Args:
        most: How many are kept; the one that was given longest ago goes first.
    """

    def __init__(self, most: int = limits.KEPT_LOGINS) -> None:
        self._most = most
        self._logins: OrderedDict[str, Credential] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, repository: str) -> bool:
        return repository in self._logins

    @property
    def repositories(self) -> frozenset[str]:
        """Those that a login is kept for."""
        with self._lock:
            return frozenset(self._logins)

    def keep(self, repository: str, credential: Credential | None) -> None:
        """A pull has been let in with a login, or without one: from now on that is what is sent.

        Args:
            repository: The domain and the path of a reference: `docker.io/library/alpine`.
            credential: The login that came with the pull.
        """
        with self._lock:
            self._logins.pop(repository, None)
            if credential is not None:
                self._logins[repository] = credential
            while len(self._logins) > self._most:
                self._logins.popitem(last=False)

    def forget(self, repositories: Collection[str]) -> None:
        """Nothing has to be fetched from these any more."""
        with self._lock:
            for repository in repositories:
                self._logins.pop(repository, None)

    def find(self, registry: str, repository: str) -> Lookup:
        """See CredentialSource."""
        with self._lock:
            credential = self._logins.get(f"{registry}/{repository}")
        if credential is None:
            return Lookup(None, ("no pull since the daemon's start has brought a login",))
        return Lookup(credential, ("used the login that came with the latest pull",))

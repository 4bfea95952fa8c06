"""The authorisation of requests to one registry.

Nothing is sent until the registry asks. What it asked for is then remembered for the repository:
the next request carries it from the start. An answer 401 to a request that did carry it means that
it has expired, or was never enough; it is renewed once, and the second refusal is final.

However many threads are refused at the same moment, one of them goes to the token service and the
others wait for what it brings, be it a token or an error.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from imgvol.errors import ImgvolError, Unauthorized
from imgvol.registry.challenge import Challenge, choose_challenge
from imgvol.registry.channel import Channel
from imgvol.registry.credentials import Credential, CredentialSource, basic
from imgvol.registry.hops import Hops
from imgvol.registry.redaction import Secret, quote_remote
from imgvol.registry.tokens import Realm, bearer, fetch_token

# A token is renewed a little early: it must still be good when it arrives.
_FRESH: Final = 0.9

# What is asked of a token service for a repository, beside what the registry names: its scopes.
Scopes: TypeAlias = Callable[[str], Sequence[str]]


def pull_scopes(repository: str) -> tuple[str, ...]:
    """To read from it."""
    return (f"repository:{repository}:pull",)


def push_scopes(repository: str) -> tuple[str, ...]:
    """To read from it and to write to it."""
    return (f"repository:{repository}:pull,push",)


@dataclass(frozen=True, slots=True)
class _Grant:
    """What goes into the header, and until when on the monotonic clock."""

    authorization: Secret
    expires: float

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self.expires


class Authorizer:
    """Answers the challenges of one registry. Safe to use from any thread.

    Args:
        domain: The registry's name in references; logins are kept under it.
        hops: How to reach token services.
        credentials: Where logins come from.
        scopes: What is to be done.
    """

    def __init__(
        self,
        domain: str,
        hops: Hops,
        credentials: CredentialSource,
        scopes: Scopes = pull_scopes,
    ) -> None:
        self._domain = domain
        self._scopes = scopes
        self._hops = hops
        self._credentials = credentials
        self._lock = threading.Lock()
        self._grants: dict[str, _Grant] = {}
        self._flights: dict[str, Future[_Grant | None]] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._secrets: dict[str, tuple[Secret, ...]] = {}

    def current(self, repository: str) -> Secret | None:
        """What to send along with a request for a repository; None at first."""
        with self._lock:
            grant = self._grants.get(repository)
        return grant.authorization if grant is not None and grant.is_fresh else None

    def renew(
        self,
        channel: Channel,
        repository: str,
        challenges: Sequence[Challenge],
        *,
        rejected: Secret | None,
    ) -> Secret:
        """Answer a challenge.

        Args:
            channel: The caller's; the token service is asked over it.
            repository: What the request was for.
            challenges: What the registry wants.
            rejected: What the request carried.

        Returns:
            What to send instead; perhaps what another thread has just fetched.

        Raises:
            Unauthorized: There is no login, or not one that is good enough.
            RegistryUnavailable: The token service cannot be reached, or fails.
            ProtocolError: The registry or the token service break the rules.
        """
        while True:
            with self._lock:
                grant = self._grants.get(repository)
                if grant is not None and grant.is_fresh and grant.authorization != rejected:
                    return grant.authorization
                self._grants.pop(repository, None)
                flight = self._flights.get(repository)
                is_leader = flight is None
                if flight is None:
                    flight = self._flights[repository] = Future()
            if is_leader:
                return self._lead(flight, channel, repository, challenges).authorization
            channel.operation.wait_for(flight)
            if brought := flight.result():
                return brought.authorization

    def hint(self, repository: str) -> str:
        """What a user can do about a refusal: where to log in, and where a login was looked for."""
        notes = "; ".join(self._notes.get(repository, ()))
        advice = f"Log in to {self._domain}, for example with podman login {self._domain}."
        return f"{advice} ({notes})" if notes else advice

    def secrets(self, repository: str) -> tuple[Secret, ...]:
        """What has been sent for a repository, in every spelling that an answer could repeat."""
        return self._secrets.get(repository, ())

    def _lead(
        self,
        flight: Future[_Grant | None],
        channel: Channel,
        repository: str,
        challenges: Sequence[Challenge],
    ) -> _Grant:
        try:
            grant = self._obtain(channel, repository, challenges)
        except ImgvolError as error:
            flight.set_exception(error)
            raise
        except BaseException:
            flight.set_result(None)  # our own trouble, such as a cancellation: others may try
            raise
        else:
            _, _, sent = grant.authorization.reveal().partition(" ")
            with self._lock:
                self._grants[repository] = grant
                self._secrets[repository] = (*self.secrets(repository), Secret(sent))
            flight.set_result(grant)
            return grant
        finally:
            with self._lock:
                del self._flights[repository]

    def _obtain(self, channel: Channel, repository: str, challenges: Sequence[Challenge]) -> _Grant:
        challenge = choose_challenge(challenges)
        if challenge is None:
            raise Unauthorized(
                "the registry asks for a login of a kind that imgvol does not know",
                registry=self._domain,
                schemes=quote_remote(" ".join(challenge.scheme for challenge in challenges)),
            )
        # A helper may take its time, to ask somebody for a passphrase for one.
        found = channel.operation.call(
            partial(self._credentials.find, self._domain, repository), name="credentials"
        )
        self._notes[repository] = found.notes
        self._secrets[repository] = found.credential.secrets if found.credential else ()
        if challenge.scheme == "basic":
            return _Grant(self._basic(found.credential, repository), float("inf"))
        if found.credential is not None and found.credential.registry_token:
            return _Grant(bearer(found.credential.registry_token), float("inf"))
        realm = Realm.of(challenge, registry=self._hops.registry, scopes=self._scopes(repository))
        begun = time.monotonic()
        token = fetch_token(
            self._hops, channel, realm, found.credential, hint=self.hint(repository)
        )
        return _Grant(bearer(token.value), begun + token.lifetime * _FRESH)

    def _basic(self, credential: Credential | None, repository: str) -> Secret:
        if credential is None or not (credential.username and credential.password):
            raise Unauthorized(
                "the registry asks for a user name and a password",
                hint=self.hint(repository),
                registry=self._domain,
            )
        return basic(credential.username, credential.password)

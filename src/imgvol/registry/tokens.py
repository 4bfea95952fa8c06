"""Asking a token service: the distribution project's token and OAuth2 specifications.

A registry answers 401 and names a realm. There, a login (or nobody in particular) is traded for a
token that is good for some scopes and a short while. With a secret, the OAuth2 form is tried first,
a POST; services that predate it refuse it in one of four ways, and get the older GET.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httpx

from imgvol import limits
from imgvol.errors import ContentError, ProtocolError, RemoteError, Unauthorized
from imgvol.oci.json import Node
from imgvol.registry.challenge import Challenge
from imgvol.registry.channel import Channel
from imgvol.registry.credentials import Credential, basic
from imgvol.registry.failures import registry_words
from imgvol.registry.hops import Hops, Request, discard, read_document, read_error
from imgvol.registry.redaction import Secret, quote_remote, redact_url
from imgvol.registry.redirects import Origin, url_problem

_CLIENT_ID: Final = "imgvol"
_WHO: Final = "the token service"
# How services without OAuth2 refuse a POST: 404 (GCR), 401 (Artifactory), 400 (ACR), 405.
_NO_POST: Final = frozenset((400, 401, 404, 405))
_REFUSED: Final = frozenset((400, 401, 403))
# What can stand in a header.
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Token:
    """A token and how many seconds it is good for."""

    value: Secret
    lifetime: float


@dataclass(frozen=True, slots=True)
class Realm:
    """What a Bearer challenge asks for."""

    url: httpx.URL
    service: str
    scopes: tuple[str, ...]

    @classmethod
    def of(cls, challenge: Challenge, *, registry: Origin, scopes: Iterable[str]) -> "Realm":
        """Read a challenge, and refuse one that would lead our login astray.

        Args:
            challenge: A Bearer challenge.
            registry: The origin that it comes from.
            scopes: What we need; asked for beside what the challenge names.

        Raises:
            ProtocolError: The realm is missing, unusable, or has no TLS though the registry has.
        """
        text = challenge.parameters.get("realm", "")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise _bad_realm("is not a URL", text) from error
        if problem := url_problem(url):
            raise _bad_realm(f"is a URL {problem}", text)
        if registry.scheme == "https" and url.scheme != "https":
            raise _bad_realm("has no TLS, though the registry has", text)
        wanted = {*scopes, *challenge.parameters.get("scope", "").split()}
        return cls(url, challenge.parameters.get("service", ""), tuple(sorted(wanted)))


def fetch_token(
    hops: Hops, channel: Channel, realm: Realm, credential: Credential | None, *, hint: str
) -> Token:
    """Trade a login, or nothing, for a token.

    Args:
        hops: How to ask.
        channel: What to ask over.
        realm: Whom to ask, and for what.
        credential: The login; None to be nobody in particular.
        hint: What to tell the user if the login is refused.

    Raises:
        Unauthorized: The service refuses the login.
        RegistryUnavailable: It cannot be reached, or fails.
        ProtocolError: It answers what it should not.
    """
    login = _login_of(credential)
    if login is not None:
        answer = _ask(hops, channel, _post(realm, *login))
        if isinstance(answer, Token):
            return answer
        if answer.status_code not in _NO_POST:
            raise _refusal(answer, login, hint)
        discard(answer)
    answer = _ask(hops, channel, _get(realm, login))
    if isinstance(answer, Token):
        return answer
    raise _refusal(answer, login, hint)


def bearer(token: Secret) -> Secret:
    """An `Authorization` header's value, after RFC 6750.

    Raises:
        ProtocolError: The token cannot stand in a header.
    """
    if not _TOKEN.fullmatch(token.reveal()):
        raise ProtocolError("the token has characters that no token has")
    return Secret(f"Bearer {token.reveal()}")


def _login_of(credential: Credential | None) -> tuple[str, Secret] | None:
    """User and secret; an empty user says that the secret is an identity token."""
    if credential is None:
        return None
    if credential.identity_token:
        return "", credential.identity_token
    if credential.username and credential.password:
        return credential.username, credential.password
    return None


def _post(realm: Realm, username: str, secret: Secret) -> Request:
    form = {
        "service": realm.service,
        "client_id": _CLIENT_ID,
        "scope": " ".join(realm.scopes),
    }
    if username:
        form |= {"grant_type": "password", "username": username, "password": secret.reveal()}
    else:
        form |= {"grant_type": "refresh_token", "refresh_token": secret.reveal()}
    return Request(
        method="POST",
        url=realm.url,
        what="a token",
        who=_WHO,
        trusted=Origin.of(realm.url),
        form=form,
        secrets=(secret,),
    )


def _get(realm: Realm, login: tuple[str, Secret] | None) -> Request:
    parameters: dict[str, str | list[str]] = {"scope": list(realm.scopes)}
    if realm.service:
        parameters = {"service": realm.service, **parameters}
    return Request(
        method="GET",
        url=realm.url.copy_merge_params(parameters),
        what="a token",
        who=_WHO,
        trusted=Origin.of(realm.url),
        authorization=basic(*login) if login else None,
        secrets=_secrets_of(login),
    )


def _ask(hops: Hops, channel: Channel, request: Request) -> Token | httpx.Response:
    """A token, or the refusal."""

    def once() -> Token | httpx.Response:
        response = hops.follow(channel, request)
        is_good = response.status_code == httpx.codes.OK
        return _read(response, hops.bounds.token_size) if is_good else response

    return hops.insist(channel, request, hops.attempts(channel.operation), once)


def _read(response: httpx.Response, allowed: int) -> Token:
    url = redact_url(response.url)
    body = read_document(response, what="token", limit="TOKEN_SIZE", allowed=allowed)
    try:
        document = Node.parse(body, what="token", max_size=allowed)
        text = document.get_string("access_token") or document.get_string("token")
        lifetime = document.get("expires_in")
    except ContentError as error:
        raise ProtocolError(
            "the token service's answer cannot be read", url=url, problem=error.message
        ) from error
    if not _TOKEN.fullmatch(text):
        raise ProtocolError("the token service's answer has no token in it", url=url)
    return Token(Secret(text), _lifetime(lifetime))


def _lifetime(node: Node | None) -> float:
    value = node.value if node else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return limits.TOKEN_LIFETIME
    return min(float(value), limits.TOKEN_LONGEST_LIFETIME)


def _refusal(response: httpx.Response, login: tuple[str, Secret] | None, hint: str) -> RemoteError:
    words = quote_remote(registry_words(read_error(response)), secrets=_secrets_of(login))
    said = f": {words}" if words else ""
    url, status = redact_url(response.url), response.status_code
    if status in _REFUSED:
        return Unauthorized(
            f"the token service refuses us{said}", hint=hint, status=status, url=url
        )
    return ProtocolError(f"unexpected answer of the token service{said}", status=status, url=url)


def _secrets_of(login: tuple[str, Secret] | None) -> tuple[Secret, ...]:
    if login is None:
        return ()
    _, _, sent = basic(*login).reveal().partition(" ")
    return login[1], Secret(sent)


def _bad_realm(problem: str, text: str) -> ProtocolError:
    return ProtocolError(
        f"the token service that the registry names {problem}", realm=redact_url(text)
    )

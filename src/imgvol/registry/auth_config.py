"""The login that comes with a request: the AuthConfig of the Container Runtime Interface.

Which member counts when there are several, and for which registry, is as containerd decides it.
Whoever sends a login and gets it wrong is told so, but never what it was.
"""

import base64
import binascii
import re
from typing import Final

from imgvol.errors import InvalidArgument
from imgvol.registry.credentials import Credential, names_registry
from imgvol.registry.redaction import Secret

# What can stand in a header (RFC 6750).
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
# What the standard's alphabet is spread over lines with: Go's decoder skips it.
_LINE_ENDS: Final = str.maketrans("", "", "\r\n")


def parse_auth_config(
    *,
    username: str = "",
    password: str = "",
    auth: str = "",
    server_address: str = "",
    identity_token: str = "",
    registry_token: str = "",
    registry: str = "",
) -> Credential | None:
    """The login in an AuthConfig; empty members are as good as none.

    The first of these counts: a user name with its password, an identity token, `auth` (both of the
    former, in base64), a registry token.

    Args:
        username: With `password`.
        password: With `username`.
        auth: `user:password` in base64, as in Docker's config.json.
        server_address: The URL or the name of the registry that the login is for; empty: for any.
        identity_token: To be traded for access tokens.
        registry_token: To be sent as it is.
        registry: The domain of the reference that is pulled; to compare `server_address` with.

    Returns:
        None: nobody in particular, as there is no login, or it is for another registry.

    Raises:
        InvalidArgument: A member cannot be what it should be.
    """
    given = (username, password, auth, server_address, identity_token, registry_token)
    if not all(map(_is_text, given)):
        raise InvalidArgument("the login that came with the request is not text")
    if server_address and not names_registry(server_address, registry):
        return None
    if username:
        credential = Credential(username=username, password=_secret(password))
    elif identity_token:
        credential = Credential(identity_token=Secret(identity_token))
    elif auth:
        credential = _decode(auth)
    elif registry_token:
        if not _TOKEN.fullmatch(registry_token):
            raise InvalidArgument("the registry token has characters that no token has")
        credential = Credential(registry_token=Secret(registry_token))
    else:
        return None
    # As containerd: a user without a password is nobody.
    return credential if credential.is_usable else None


def _decode(auth: str) -> Credential:
    try:
        pair = base64.b64decode(auth.translate(_LINE_ENDS), validate=True).decode()
    except (binascii.Error, ValueError):
        # Not raised from it: a decoding error holds the bytes.
        pair = ""
    username, colon, password = pair.partition(":")
    if not colon:
        raise InvalidArgument(
            "the login that came with the request cannot be read",
            hint="Its member auth is user:password in base64.",
        )
    return Credential(username=username, password=_secret(password.strip("\0")))


def _secret(text: str) -> Secret | None:
    return Secret(text) if text else None


def _is_text(value: str) -> bool:
    """Whether it can be sent; JSON can spell halves of characters, which nobody can."""
    return not any("\ud800" <= c <= "\udfff" for c in value)

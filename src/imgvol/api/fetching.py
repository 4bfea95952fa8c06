"""What requests say of the image that they may have to fetch: for which platform, how, as whom."""

from typing import Final

from imgvol import limits
from imgvol.api.fields import Field

PLATFORM: Final = Field(
    name="platform",
    description="`os/architecture[/variant]`; the daemon's own when absent.",
    example="linux/arm64",
)
FETCHING: Final = (
    PLATFORM,
    Field(name="plain_http", kind="boolean", description="Talk to the registry without TLS."),
    Field(name="insecure", kind="boolean", description="Do not check the registry's certificate."),
    Field(
        name="ca_file",
        description="Certificates to trust, PEM, absolute path on the daemon's machine.",
        example="/etc/ssl/certs/registry.pem",
        is_path=True,
    ),
)
LOGIN: Final = (
    Field(
        name="username",
        description="Log in to the registry as this user, with `password`.",
        maximum=limits.LOGIN_LENGTH,
    ),
    Field(
        name="password",
        description="Of `username`.",
        maximum=limits.LOGIN_LENGTH,
        is_secret=True,
    ),
    Field(
        name="auth",
        description="Both of them, `username:password` in base64.",
        maximum=limits.LOGIN_LENGTH,
        is_secret=True,
    ),
    Field(
        name="identity_token",
        description="Instead of them: to be traded for access tokens.",
        maximum=limits.LOGIN_LENGTH,
        is_secret=True,
    ),
    Field(
        name="registry_token",
        description="Instead of them: to be sent as it is.",
        maximum=limits.LOGIN_LENGTH,
        is_secret=True,
    ),
)

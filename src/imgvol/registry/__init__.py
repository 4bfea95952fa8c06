"""The distribution API over httpx: auth, redirects, ranges, uploads, retries.

The layers, each knowing only those below it:

    client      coroutines for documents, readers for blobs
    push        the same for pushing, to no mirror           origin: the registry itself
    fallback    blobs from the first place that delivers     foreign: places that images name
    stations    the endpoints of a registry, one after another
    uploads     blobs to a registry, taken up again         upload_places, sending, push_failures
    storing     manifests to a registry, lists of referrers
    documents   manifests, configs: whole and verified      body   blobs: resumed by range
    referrers   what lists of referrers say
    session     a request to one endpoint, with the authorisation it needs
    auth        challenges answered, once for all threads   tokens, credentials, helpers
    auth_config the login that comes with a request
    hops        redirects followed, failures tried again    redirects, retry, addresses: the rules
    channel     an httpx client for one user at a time
    network     sockets with a deadline and a cancel button

Which endpoints there are, is said by `registries`, from `hosts_file` and `registries_file`
(`rewrites`); `health` knows who has failed lately.

Nothing below `client` and `push` is asynchronous. Errors become ours in `failures`; what may be
shown of a URL, or of a registry's words, is decided in `redaction`.
"""

from imgvol.registry import lean_httpx  # noqa: F401 - before anything that imports httpx
from imgvol.registry.auth_config import parse_auth_config
from imgvol.registry.body import BlobReader
from imgvol.registry.bounds import Bounds
from imgvol.registry.client import RegistryClient, open_registry_client
from imgvol.registry.credentials import (
    Credential,
    CredentialChain,
    CredentialSource,
    FileCredentials,
    Lookup,
    NoCredentials,
    StaticCredentials,
    credential_files,
    logins_of_this_user,
)
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.redaction import Secret
from imgvol.registry.registries import Registries

__all__ = [
    "BlobReader",
    "Bounds",
    "Credential",
    "CredentialChain",
    "CredentialSource",
    "FileCredentials",
    "Lookup",
    "NoCredentials",
    "Registries",
    "RegistryClient",
    "RegistryOptions",
    "Secret",
    "StaticCredentials",
    "credential_files",
    "logins_of_this_user",
    "open_registry_client",
    "parse_auth_config",
]

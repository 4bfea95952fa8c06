"""Credential helpers: programs `docker-credential-<name>` that know a registry's login.

The protocol is docker's: the registry on standard input, `{"Username", "Secret"}` on standard
output, or an exit status other than 0 and a message. A helper may ask another program or the
network, hang, or print without end: it gets a deadline, a bounded output, no file of ours, and a
session of its own, so that one that is late is ended with all that it started.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from typing import Final

from imgvol import limits
from imgvol.registry.redaction import Secret, quote_remote

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# docker-credential-helpers `credentials.ErrCredentialsNotFound`: not an error, an answer.
_NOT_FOUND: Final = "credentials not found in native keychain"


class HelperFailed(Exception):
    """A helper could not be asked; the text says why, without secrets. Internal to this room."""


def ask_helper(
    name: str, registry: str, *, deadline: float = limits.CREDENTIAL_HELPER_DEADLINE
) -> tuple[str, Secret] | None:
    """Ask a helper for a user name and a secret.

    Args:
        name: What follows `docker-credential-` in the program's name.
        registry: Whose login; for Docker Hub `https://index.docker.io/v1/`.
        deadline: Seconds.

    Returns:
        User name and secret, or None when the helper has none for this registry.

    Raises:
        HelperFailed: It is not installed, or did not answer as it should.
    """
    if not _NAME.fullmatch(name):
        raise HelperFailed("its name is not the name of a program")
    status, output = _run([f"docker-credential-{name}", "get"], registry.encode(), deadline)
    if status != 0:
        said = quote_remote(output.decode("utf-8", "replace"))
        if _NOT_FOUND in said:
            return None
        raise HelperFailed(f"it ended with status {status}: {said}")
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise HelperFailed("its answer is not what the protocol asks for") from error
    if not isinstance(username, str) or not isinstance(secret, str):
        raise HelperFailed("its answer is not what the protocol asks for")
    return username, Secret(secret)


def _run(command: list[str], given: bytes, seconds: float) -> tuple[int, bytes]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise HelperFailed(f"{command[0]}: {os.strerror(error.errno or 0).lower()}") from error
    with process:
        try:
            return _converse(process, given, time.monotonic() + seconds)
        finally:
            # Only while its number is its own: once waited for, it may be somebody else's.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _converse(
    process: "subprocess.Popen[bytes]", given: bytes, deadline: float
) -> tuple[int, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        # A registry's name is shorter than any pipe: this does not block.
        process.stdin.write(given)
        process.stdin.close()
    output = bytearray()
    while data := _read(process.stdout.fileno(), deadline):
        output += data
        if len(output) > limits.CREDENTIAL_HELPER_OUTPUT:
            raise HelperFailed("it prints too much")
    try:
        return process.wait(max(0.0, deadline - time.monotonic())), bytes(output)
    except subprocess.TimeoutExpired:
        raise HelperFailed("it does not end") from None


def _read(descriptor: int, deadline: float) -> bytes:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise HelperFailed("it does not answer in time")
    return os.read(descriptor, limits.BODY_PIECE)

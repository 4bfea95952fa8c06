"""The CRI's edge for errors: the one place where an exception becomes a gRPC status."""

from typing import Final

import grpc

from imgvol import limits
from imgvol.errors import ImageVolumeMountFailed, ImgvolError, RegistryUnavailable

# What kubelets look for at the start of an error's text (k8s.io/cri-api/pkg/errors). They see the
# bare text only of errors with the code UNKNOWN: of others, their client puts the code before it.
_KNOWN_TO_KUBELETS: Final[tuple[type[ImgvolError], ...]] = (
    RegistryUnavailable,
    ImageVolumeMountFailed,
)


def status_of(error: ImgvolError) -> tuple[grpc.StatusCode, str]:
    """The code and the text of an error.

    An error that kubelets know by a name has the name before its text, and the code UNKNOWN.
    """
    for known in _KNOWN_TO_KUBELETS:
        if isinstance(error, known):
            return grpc.StatusCode.UNKNOWN, _text(f"{known.__name__}: {error}", error.hint)
    return grpc.StatusCode[type(error).grpc_code], _text(str(error), error.hint)


def _text(message: str, hint: str) -> str:
    text = f"{message}. {hint}" if hint else message
    # Halves of characters, which JSON can spell, cannot be sent.
    data = text.encode("utf-8", "replace")
    if len(data) > limits.CRI_MESSAGE_SIZE:
        return f"{data[: limits.CRI_MESSAGE_SIZE].decode('utf-8', 'ignore')}…"
    return data.decode("utf-8")

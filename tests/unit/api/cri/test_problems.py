"""Errors as gRPC statuses."""

import grpc
import pytest

from imgvol import errors, limits
from imgvol.api.cri.problems import status_of
from imgvol.errors import (
    Conflict,
    ImageVolumeMountFailed,
    ImgvolError,
    InvalidReference,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    StoreFull,
    TooManyRequests,
    Unauthorized,
)


def all_errors():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ImgvolError)]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_a_code(kind):
    code, text = status_of(kind("it went wrong"))
    assert code not in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert "it went wrong" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), grpc.StatusCode.NOT_FOUND),
        (InvalidReference("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (Conflict("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (PermissionDenied("x"), grpc.StatusCode.PERMISSION_DENIED),
        (StoreFull("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unauthorized("x"), grpc.StatusCode[Unauthorized.grpc_code]),
    ],
)
def test_codes_are_those_of_the_tree(error, code):
    assert status_of(error) == (code, "x")


@pytest.mark.parametrize("kind", [RegistryUnavailable, TooManyRequests])
def test_kubelets_find_the_name_at_the_start_and_the_code_that_lets_them_look(kind):
    # Their client puts any other code before the text.
    code, text = status_of(kind("it does not answer", hint="Try later.", registry="r.test"))
    assert code is grpc.StatusCode.UNKNOWN
    assert text == "RegistryUnavailable: it does not answer (registry r.test). Try later."


def test_so_they_do_for_volumes():
    code, text = status_of(ImageVolumeMountFailed("no"))
    assert (code, text) == (grpc.StatusCode.UNKNOWN, "ImageVolumeMountFailed: no")


def test_a_text_is_bounded_and_can_be_sent():
    _, text = status_of(NotFound("\ud800" + "é" * 10_000))
    assert (
        limits.CRI_MESSAGE_SIZE < len(text.encode()) <= limits.CRI_MESSAGE_SIZE + len("…".encode())
    )
    assert text.startswith("?éé")

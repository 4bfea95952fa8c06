import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol.errors import InvalidArgument, InvalidReference
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference
from imgvol.sources.parse import (
    DockerArchive,
    LayoutImage,
    OCIArchive,
    RegistryImage,
    parse_image_argument,
)

SHA = f"sha256:{'f' * 64}"
DIGEST = Digest.parse(SHA)
ALPINE = Reference.parse("alpine:latest")


@pytest.mark.parametrize(
    ("text", "argument", "name"),
    [
        ("alpine", RegistryImage(ALPINE), "docker.io/library/alpine:latest"),
        ("docker://alpine", RegistryImage(ALPINE), "docker.io/library/alpine:latest"),
        (
            f"example.com/a:1@{SHA}",
            RegistryImage(Reference("example.com", "a", None, DIGEST)),
            f"example.com/a@{SHA}",
        ),
        ("oci:/srv/a", LayoutImage("/srv/a"), "oci:/srv/a"),
        ("oci:/srv//a/.:v1", LayoutImage("/srv/a", "v1"), "oci:/srv/a:v1"),
        ("oci:build:v1", LayoutImage("build", "v1"), "oci:build:v1"),
        ("oci:/a:", LayoutImage("/a"), "oci:/a"),
        (f"oci:/a@{SHA}", LayoutImage("/a", None, DIGEST), f"oci:/a@{SHA}"),
        ("oci:/a@b:v@1", LayoutImage("/a@b", "v@1"), "oci:/a@b:v@1"),
        (
            "oci:/a:docker.io/x/y:1",
            LayoutImage("/a", "docker.io/x/y:1"),
            "oci:/a:docker.io/x/y:1",
        ),
        ("oci-archive:/a.tar:v1", OCIArchive("/a.tar", "v1"), "oci-archive:/a.tar:v1"),
        ("docker-archive:/a.tar", DockerArchive("/a.tar"), "docker-archive:/a.tar"),
        (
            "docker-archive:/a.tar:alpine",
            DockerArchive("/a.tar", ALPINE),
            "docker-archive:/a.tar:docker.io/library/alpine:latest",
        ),
        (
            "docker-archive:/a.tar:@12",
            DockerArchive("/a.tar", None, 12),
            "docker-archive:/a.tar:@12",
        ),
    ],
)
def test_arguments(text, argument, name):
    assert parse_image_argument(text) == argument
    assert str(argument) == name
    assert parse_image_argument(name) == argument


@pytest.mark.parametrize(
    "text",
    [
        "oci:",
        "oci::tag",
        "oci-archive:",
        "docker-archive::x",
        "oci:/a\0b",
        f"oci:/a:tag@{SHA}",
        "docker-archive:/a:@x",
        "docker-archive:/a:@-1",
        "docker-archive:/a:@99999999",
        "oci:/" + "a" * 100_000,
    ],
    ids=lambda t: repr(t[:24]),
)
def test_malformed_places(text):
    with pytest.raises(InvalidArgument) as caught:
        parse_image_argument(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "UPPER", "docker://", "docker-archive:/a:UPPER", "dir:/x"])
def test_malformed_references(text):
    with pytest.raises(InvalidReference):
        parse_image_argument(text)


@given(
    st.sampled_from(["", "oci:", "oci-archive:", "docker-archive:", "docker://"]),
    st.text(max_size=30) | st.text(alphabet="/.:@a0", max_size=30),
)
@example("oci:", "0@:@")
def test_names_are_canonical_and_nothing_else_is_raised(scheme, text):
    try:
        argument = parse_image_argument(scheme + text)
    except InvalidArgument:
        return
    assert str(parse_image_argument(str(argument))) == str(argument)

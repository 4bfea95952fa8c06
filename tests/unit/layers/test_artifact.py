"""What a manifest that is no image's shows as files, and which titles refuse it."""

import pytest

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded
from imgvol.layers.artifact import parse_artifact
from imgvol.oci.manifest import parse_manifest
from support.artifacts import EMPTY, Artifact, Blob

IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"


def parsed(artifact):
    return parse_manifest(artifact.manifest_bytes(), media_type=None)


def names(*blobs, **members):
    return [f.name for f in parse_artifact(parsed(Artifact(blobs, **members))).files]


@pytest.mark.parametrize(
    ("config_type", "is_artifact"),
    [
        (EMPTY, True),
        ("application/vnd.cncf.helm.config.v1+json", True),
        ("application/vnd.unknown.config.v1+json", True),
        (IMAGE_CONFIG, False),
        ("application/vnd.docker.container.image.v1+json", False),
        ("application/octet-stream", False),
    ],
)
def test_the_type_of_the_config_makes_an_artifact(config_type, is_artifact):
    manifest = parsed(Artifact([Blob(b"x", "x")], config_type=config_type))
    assert manifest.is_artifact is is_artifact


def test_files_have_their_titles_or_their_digests_for_names():
    untitled = Blob(b"untitled")
    assert names(Blob(b"1", "b.txt"), Blob(b"2", "dir/ä b"), untitled, Blob(b"3", "")) == [
        "b.txt",
        "dir/ä b",
        untitled.digest.replace(":", "-"),
        Blob(b"3").digest.replace(":", "-"),
    ]


def test_what_is_there_for_form_is_no_file():
    assert names(Blob(b"{}", media_type=EMPTY)) == []
    assert names(Blob(b"{}", "empty.json", media_type=EMPTY)) == ["empty.json"]
    assert names() == []


@pytest.mark.parametrize(
    "title",
    [
        "/etc/passwd",
        "../etc/passwd",
        "a/../../b",
        "..",
        ".",
        "./a",
        "a/.",
        "a//b",
        "a/",
        "/",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\x7f",
        "n" * 256,
        "ä" * 128,
        "/".join(["d" * 200] * 21),
        ".wh.a",
        "d/.wh..wh..opq",
        "stargz.index.json",
        ".no.prefetch.landmark",
    ],
)
def test_a_title_that_is_no_plain_path_refuses_the_artifact(title):
    with pytest.raises(InvalidDocument, match="cannot have this name") as caught:
        names(Blob(b"good", "good"), Blob(b"bad", title))
    assert caught.value.fields["path"] == "layers[1].annotations"


def test_the_longest_names_pass():
    longest = "/".join(["d" * 255] * 15 + ["f" * 255])
    assert len(longest) == limits.PATH_LENGTH - 1
    assert names(Blob(b"1", longest), Blob(b"2", "ä" * 127)) == [longest, "ä" * 127]


@pytest.mark.parametrize("other", [b"the same", b"another"])
def test_two_blobs_of_one_name_refuse_the_artifact(other):
    with pytest.raises(InvalidDocument, match="one name"):
        names(Blob(b"the same", "a"), Blob(other, "a"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_that_is_a_directory_refuses_the_artifact(order):
    with pytest.raises(InvalidDocument, match="a file and a directory"):
        names(*[Blob(b"1", "a/b"), Blob(b"2", "a/b/c/d")][::order])


def test_a_title_may_be_what_another_blob_would_be_called_without_one():
    untitled = Blob(b"untitled")
    with pytest.raises(InvalidDocument, match="one name"):
        names(untitled, Blob(b"other", untitled.digest.replace(":", "-")))


def test_artifacts_may_have_more_blobs_than_images_have_layers():
    blobs = [Blob(b"%d" % number, f"{number}") for number in range(limits.LAYERS + 1)]
    assert len(names(*blobs)) == limits.LAYERS + 1
    with pytest.raises(LimitExceeded):
        parsed(Artifact(blobs, config_type=IMAGE_CONFIG))
    with pytest.raises(LimitExceeded):
        names(*[Blob(b"", f"{number}") for number in range(limits.ARTIFACT_BLOBS + 1)])


def test_what_is_larger_than_any_layer_is_refused():
    document = Artifact([Blob(b"x", "x")]).manifest_bytes()
    large = document.replace(b'"size": 1,', b'"size": %d,' % (limits.TAR_SIZE + 1))
    assert large != document
    with pytest.raises(LimitExceeded):
        parse_artifact(parse_manifest(large, media_type=None))


def test_the_key_is_of_everything_that_is_shown():
    def key(*blobs, **annotations):
        return parse_artifact(parsed(Artifact(blobs, annotations=annotations))).key

    one = key(Blob(b"1", "a"))
    assert key(Blob(b"1", "a"), unrelated="x") == one
    created = {"org.opencontainers.image.created": "2024-01-01T00:00:00Z"}
    others = [key(Blob(b"1", "b")), key(Blob(b"2", "a")), key(), key(Blob(b"1", "a"), **created)]
    assert len({one, *others}) == 5

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import ContentError, DigestMismatch, InvalidDocument, LimitExceeded
from imgvol.oci.digest import Digest
from imgvol.oci.image_config import HistoryStep, parse_image_config
from imgvol.oci.platform import Platform

DIFF_ID = str(Digest.of(b"layer"))
MINIMAL = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]},
}


def parse(members, **options):
    return parse_image_config(json.dumps(members).encode(), **options)


def test_minimal_config():
    raw = json.dumps(MINIMAL, indent=3).encode()
    config = parse_image_config(raw)
    assert config.platform == Platform("linux", "amd64")
    assert [str(diff_id) for diff_id in config.diff_ids] == [DIFF_ID]
    assert config.raw == raw
    assert config.digest == Digest.of(raw)
    assert config.env == config.cmd == config.entrypoint == config.history == ()


def test_full_config():
    config = parse(
        {
            **MINIMAL,
            "variant": "v2",
            "os.version": "1",
            "os.features": ["a"],
            "created": "2024-01-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": "one text",
                "Env": ["A=1", "B="],
                "Labels": {"a": "b", "A": "c"},
                "WorkingDir": "/w",
                "User": "1:1",
                "ExposedPorts": {"80/tcp": {}},
            },
            "history": [
                {"created": "x", "created_by": "y", "author": "z", "comment": "c"},
                {"empty_layer": True},
            ],
        }
    )
    assert config.platform == Platform("linux", "amd64", "v2", "1", ("a",))
    assert config.entrypoint == ("/bin/sh", "-c")
    assert config.cmd == ("one text",)
    assert config.env == ("A=1", "B=")
    assert config.labels == {"a": "b", "A": "c"}
    assert (config.working_dir, config.user) == ("/w", "1:1")
    assert config.history == (
        HistoryStep(created="x", created_by="y", author="z", comment="c"),
        HistoryStep(is_empty_layer=True),
    )


def test_nulls_of_docker_are_absent():
    run = dict.fromkeys(("Entrypoint", "Cmd", "Env", "Labels", "WorkingDir", "User"))
    config = parse({**MINIMAL, "config": run, "history": None})
    assert config.labels == {}
    assert config.env == ()
    assert parse({**MINIMAL, "config": None}).user == ""


@pytest.mark.parametrize("document", [{}, {"architecture": "amd64", "os": "linux"}])
def test_artifact_without_rootfs_has_no_diff_ids(document):
    assert parse(document).diff_ids == ()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"rootfs": []}, "rootfs"),
        ({"rootfs": {"diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "unknown", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": {}}}, "rootfs.diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:../x"]}}, "rootfs.diff_ids[0]"),
        ({"rootfs": {"type": "layers", "diff_ids": [DIFF_ID, None]}}, "rootfs.diff_ids[1]"),
        ({"rootfs": {"type": "layers", "Diff_IDs": []}}, "rootfs.Diff_IDs"),
        ({"Rootfs": MINIMAL["rootfs"]}, "Rootfs"),
        ({"OS": "linux"}, "OS"),
        ({"os": 1}, "os"),
        ({"config": []}, "config"),
        ({"config": {"Env": [1]}}, "config.Env[0]"),
        ({"config": {"Labels": {"a": 1}}}, "config.Labels.a"),
        ({"history": [{"empty_layer": 1}]}, "history[0].empty_layer"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_malformed_configs_are_refused_with_the_place(change, path):
    with pytest.raises(InvalidDocument) as caught:
        parse({**MINIMAL, **change})
    assert caught.value.fields["path"] == path


def test_limits_and_digest():
    many = {"type": "layers", "diff_ids": [DIFF_ID] * (limits.LAYERS + 1)}
    with pytest.raises(LimitExceeded):
        parse({**MINIMAL, "rootfs": many})
    with pytest.raises(LimitExceeded):
        parse_image_config(b" " * (limits.CONFIG_SIZE + 1))
    with pytest.raises(DigestMismatch):
        parse(MINIMAL, expected=Digest.of(b"other"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["layers", DIFF_ID, "\u00e4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "diff_ids", "Env", "Cmd"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["os", "rootfs", "config", "history", "created"]), VALUES),
)
def test_no_other_exception_on_any_object(members):
    with suppress(ContentError):
        parse({**MINIMAL, **members})

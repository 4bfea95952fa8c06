"""What a hook reads of a runtime: states, configurations, annotations."""

import json

import pytest

from imgvol import limits
from imgvol.errors import InvalidArgument, InvalidDocument, LimitExceeded
from imgvol.volumes.runtime_hook import BundleConfig, HookState, WantedMount, wanted_mounts

STATE = {"ociVersion": "1.0.2", "id": "c1", "status": "created", "pid": 7, "bundle": "/b"}


def parse(**members):
    return HookState.parse(json.dumps({**STATE, **members}).encode())


def test_a_state_as_runtimes_write_it():
    state = parse(annotations={"a": "b"})
    assert (state.id, state.pid, state.bundle, state.annotations) == ("c1", 7, "/b", {"a": "b"})
    assert parse().annotations is None
    assert parse(pid=None).pid == 0


@pytest.mark.parametrize(
    "members",
    [{"id": None}, {"id": 5}, {"bundle": "relative"}, {"pid": -1}, {"annotations": ["a"]}],
)
def test_a_state_that_is_none_is_refused(members):
    with pytest.raises(InvalidDocument):
        parse(**members)


def test_a_state_without_end_is_refused():
    with pytest.raises(LimitExceeded):
        HookState.parse(b'{"id": "' + b"x" * limits.HOOK_STATE_SIZE)


@pytest.mark.parametrize(("root", "rootfs"), [("rootfs", "rootfs"), ("/srv/root", "/srv/root")])
def test_the_root_of_a_bundle(tmp_path, root, rootfs):
    config = {"root": {"path": root}, "annotations": {"a": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = BundleConfig.read(str(tmp_path))
    assert found.rootfs == str(tmp_path / rootfs)
    assert found.annotations == {"a": "b"}


def test_a_bundle_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(InvalidDocument, match=r"config\.json cannot be read"):
        BundleConfig.read(str(tmp_path))


def test_annotations_name_images_and_places():
    assert wanted_mounts(
        {
            "io.imgvol.volumes/b/c": "alpine:3?pull=never&subpath=etc%2Fapk",
            "io.imgvol.volumes/b": "oci:/srv/l:x",
            "io.imgvol.volumesfoo": "no",
            "io.kubernetes.cri.sandbox-id": "no",
        }
    ) == (
        WantedMount(destination="/b", image="oci:/srv/l:x"),
        WantedMount(destination="/b/c", image="alpine:3", sub_path="etc/apk", pull="never"),
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/", "alpine"),
        ("/a/", "alpine"),
        ("/a/../b", "alpine"),
        ("/./a", "alpine"),
        ("//a", "alpine"),
        ("/a\0", "alpine"),
        ("/a", ""),
        ("/a", "?subpath=x"),
        ("/a", "alpine?unknown=1"),
        ("/a", "alpine?pull=always"),
        ("/a", "alpine?pull=never&pull=missing"),
    ],
)
def test_an_annotation_that_makes_no_sense_is_refused(path, value):
    with pytest.raises(InvalidArgument):
        wanted_mounts({f"io.imgvol.volumes{path}": value})


def test_there_is_an_end_to_annotations():
    with pytest.raises(LimitExceeded):
        wanted_mounts({f"io.imgvol.volumes/{n}": "alpine" for n in range(limits.HOOK_MOUNTS + 1)})

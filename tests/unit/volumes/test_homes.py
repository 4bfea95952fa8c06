"""The directories of sandboxes' volumes: which there can be, and how they come and go."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidArgument, LocalError
from imgvol.oci.digest import Digest
from imgvol.volumes.homes import Homes, check_lease_id

MANIFEST = Digest.of(b"manifest")


@pytest.fixture
def homes(tmp_path):
    return Homes(tmp_path / "volumes")


@given(st.text(max_size=limits.LEASE_ID_LENGTH + 1) | st.from_regex(r"[./a]{1,6}"))
def test_an_id_that_is_accepted_is_one_plain_name(text):
    try:
        check_lease_id(text)
    except InvalidArgument:
        return
    assert os.path.normpath(f"/volumes/{text}/x") == f"/volumes/{text}/x"
    assert text.count("/") == 0
    assert text.isascii()
    assert text.isprintable()
    assert len(os.fsencode(text)) <= limits.NAME_LENGTH


@pytest.mark.parametrize("text", ["a", "3f9c" * 16, "kube_pod-1.2", "A" * 128, "a..b"])
def test_ids_that_runtimes_use_are_accepted(text):
    check_lease_id(text)


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a\n", "a ", "é", "a" * 129, "a:b"])
def test_others_are_not(text):
    with pytest.raises(InvalidArgument):
        check_lease_id(text)


def test_a_home_is_made_twice_and_removed_twice(homes, tmp_path):
    target = homes.target("pod", MANIFEST)
    assert target == f"{tmp_path}/volumes/pod/{MANIFEST.encoded}"
    homes.make(target)
    homes.make(target)
    assert os.path.isdir(target)
    homes.remove(target)
    homes.remove(target)
    assert os.listdir(tmp_path / "volumes") == []


def test_the_last_volume_takes_the_sandboxs_directory_along(homes, tmp_path):
    first, second = homes.target("pod", MANIFEST), homes.target("pod", Digest.of(b"other"))
    homes.make(first)
    homes.make(second)
    homes.remove(first)
    assert os.path.isdir(second)
    homes.remove(second)
    assert not os.path.exists(os.path.dirname(second))


def test_what_has_something_in_it_stays_and_is_told_of(homes):
    target = homes.target("pod", MANIFEST)
    homes.make(target)
    with open(f"{target}/file", "w"):
        pass
    with pytest.raises(LocalError, match="not empty"):
        homes.remove(target)


def test_only_what_is_below_is_owned(homes, tmp_path):
    assert homes.owns(homes.target("pod", MANIFEST))
    for other in ("/mnt", f"{tmp_path}/volumes", f"{tmp_path}/volumes2/a/b", f"{tmp_path}"):
        assert not homes.owns(other)


@pytest.mark.expects_log("belongs to no volume")
def test_a_sweep_removes_empty_directories_without_a_volume_and_nothing_else(
    homes, tmp_path, caplog
):
    kept, gone = homes.target("pod", MANIFEST), homes.target("old", MANIFEST)
    full = homes.target("full", MANIFEST)
    for target in (kept, gone, full):
        homes.make(target)
    with open(f"{full}/file", "w"):
        pass
    with open(tmp_path / "volumes" / "stray", "w"):
        pass
    homes.sweep({kept})
    assert sorted(os.listdir(tmp_path / "volumes")) == ["full", "pod", "stray"]
    assert os.path.exists(f"{full}/file")
    assert os.path.isdir(kept)
    assert len(caplog.records) == 1


def test_without_any_there_is_nothing_to_sweep(homes):
    homes.sweep(set())

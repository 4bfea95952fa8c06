"""Options of a bind mount, one by one."""

import pytest

from imgvol import limits
from imgvol.errors import InvalidArgument, MachineLacks
from imgvol.volumes import mounts
from imgvol.volumes.options import BindOptions, IDMapping, Propagation, parse_mappings


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("private", Propagation.PRIVATE),
        ("rprivate", Propagation.PRIVATE),
        ("PROPAGATION_PRIVATE", Propagation.PRIVATE),
        ("rslave", Propagation.HOST_TO_CONTAINER),
        ("HostToContainer", Propagation.HOST_TO_CONTAINER),
        ("PROPAGATION_HOST_TO_CONTAINER", Propagation.HOST_TO_CONTAINER),
    ],
)
def test_propagation_is_known_by_the_words_of_mount_and_of_the_cri(word, meaning):
    assert Propagation.parse(word) is meaning


@pytest.mark.parametrize("word", ["rshared", "Bidirectional", "PROPAGATION_BIDIRECTIONAL"])
def test_nothing_that_a_container_mounts_reaches_the_host(word):
    with pytest.raises(InvalidArgument, match="bidirectional"):
        Propagation.parse(word)


def test_other_words_are_refused():
    with pytest.raises(InvalidArgument, match="unknown"):
        Propagation.parse("")


def test_mappings_of_one_kind_only_are_refused():
    with pytest.raises(InvalidArgument, match="together"):
        BindOptions(uid_mappings=parse_mappings("0:100000:65536"))


def test_more_mappings_than_the_kernel_takes_are_refused():
    runs = tuple(IDMapping(container_id=n, host_id=n, length=1) for n in range(limits.ID_MAPPINGS))
    assert BindOptions(uid_mappings=runs, gid_mappings=runs).uid_mappings == runs
    more = (*runs, IDMapping(container_id=999, host_id=999, length=1))
    with pytest.raises(InvalidArgument, match="too many"):
        BindOptions(uid_mappings=more, gid_mappings=more)


@pytest.mark.parametrize(
    "text", ["0:1", "0:1:0", "a:1:1", "-1:0:1", "0:0:4294967296", "٣:0:1", ","]
)
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_mappings(text)


def test_labels_are_refused_where_they_matter(tmp_path, monkeypatch):
    wish = BindOptions(selinux_relabel=True)
    monkeypatch.setattr(mounts, "SELINUX", tmp_path / "enforce")
    mounts.refuse_impossible(wish)
    (tmp_path / "enforce").touch()
    mounts.refuse_impossible(BindOptions())
    with pytest.raises(MachineLacks, match="SELinux"):
        mounts.refuse_impossible(wish)

"""Records as messages."""

import json
from types import SimpleNamespace

import pytest

from imgvol import limits
from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.api.cri.messages import (
    Found,
    filesystem_info,
    image_batches,
    image_message,
    image_status,
    parse_user,
    runtime_status,
)
from support.cri import digest, make_image

LARGEST = (1 << 63) - 1


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (None, "")),
        ("0", (0, "")),
        ("0:1", (0, "")),
        ("1:2:3", (1, "")),
        ("1002", (1002, "")),
        ("1003:users", (1003, "")),
        ("root:root", (None, "root")),
        ("test:test", (None, "test")),
        ("www-data", (None, "www-data")),
        (":1", (None, "")),
        ("007", (7, "")),
        ("-1", (-1, "")),
        ("+1", (1, "")),
        (f"{LARGEST}", (LARGEST, "")),
        (f"{LARGEST + 1}", (None, f"{LARGEST + 1}")),
        (f"{-LARGEST - 2}", (None, f"{-LARGEST - 2}")),
        ("1_000", (None, "1_000")),
        (" 1", (None, " 1")),
        ("1\n", (None, "1\n")),
        ("٣", (None, "٣")),
        ("0x1", (None, "0x1")),
        ("a\ud800b", (None, "a?b")),
        ("9" * 5000, (None, "9" * 5000)),
    ],
)
def test_a_user_is_a_number_or_a_name(user, expected):
    assert parse_user(user) == expected
    message = image_message(make_image(1, user=user))
    assert message.HasField("uid") == (expected[0] is not None)
    assert (message.uid.value or None, message.username) == (expected[0] or None, expected[1])


def test_an_image_has_all_its_fields():
    image = make_image(
        3,
        repo_tags=("a.test/x:1", "b.test/y:2"),
        repo_digests=(f"a.test/x@{digest(9)}",),
        size=1 << 40,
        user="1:2",
        is_pinned=True,
    )
    assert image_message(image) == pb.Image(
        id=digest(3),
        repo_tags=["a.test/x:1", "b.test/y:2"],
        repo_digests=[f"a.test/x@{digest(9)}"],
        size=1 << 40,
        uid=pb.Int64Value(value=1),
        username="",
        spec=pb.ImageSpec(image=digest(3)),
        pinned=True,
    )


def test_an_image_pulled_by_its_digest_has_no_tags():
    assert list(image_message(make_image(1, repo_tags=())).repo_tags) == []


@pytest.mark.parametrize("count", [0, 1, limits.CRI_STREAM_BATCH, limits.CRI_STREAM_BATCH + 1])
def test_batches_have_every_image_once_and_are_bounded(count):
    batches = list(image_batches([make_image(n) for n in range(count)]))
    assert [image.id for batch in batches for image in batch.images] == [
        digest(n) for n in range(count)
    ]
    assert all(0 < len(batch.images) <= limits.CRI_STREAM_BATCH for batch in batches)


def test_no_image_is_an_answer_without_one():
    assert image_status(Found(image=None)) == pb.ImageStatusResponse()
    assert not image_status(Found(image=None, is_verbose=True)).info


def test_what_is_verbose_has_the_chain_and_the_config_as_containerd_names_them():
    found = Found(image=make_image(1), config={"config": {"User": "x\ud800"}}, is_verbose=True)
    answer = image_status(found)
    assert json.loads(answer.info["info"]) == {
        "chainID": digest(2_000_001),
        "imageSpec": {"config": {"User": "x\ud800"}},
    }
    assert not image_status(Found(image=make_image(1), config={"config": {}})).info


def test_an_artifact_has_no_config():
    answer = image_status(Found(image=make_image(1), config=None, is_verbose=True))
    assert json.loads(answer.info["info"])["imageSpec"] == {}


def test_disks_keep_their_order_and_containers_have_none():
    usage = SimpleNamespace(timestamp_ns=5, mountpoint="/a", used_bytes=0, inodes_used=0)
    second = SimpleNamespace(timestamp_ns=6, mountpoint="/b", used_bytes=2, inodes_used=3)
    answer = filesystem_info([usage, second])
    assert [disk.fs_id.mountpoint for disk in answer.image_filesystems] == ["/a", "/b"]
    assert answer.image_filesystems[0].HasField("used_bytes")  # 0 is known, null is not
    assert answer.image_filesystems[1].inodes_used.value == 3
    assert not answer.container_filesystems


def test_the_runtime_claims_nothing_that_it_is_not():
    conditions = runtime_status().status.conditions
    assert {c.type: c.status for c in conditions} == {"RuntimeReady": False, "NetworkReady": False}
    assert all(c.reason and c.message for c in conditions)

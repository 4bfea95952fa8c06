"""Names under other registries."""

import pytest

from imgvol.errors import InvalidArgument
from imgvol.images.preload.retag import parse_registries, plan_retags

DIGEST = "sha256:" + "f" * 64


def retags(names, *registries):
    return list(plan_retags(names, parse_registries(registries)).copies)


def test_every_name_is_made_of_the_original_one():
    """k3s made the second one of the first."""
    own = "docker.io/library/busybox:1"
    assert retags([own], "one.example/mirror", "two.example:5000") == [
        ("one.example/mirror/library/busybox:1", own),
        ("two.example:5000/library/busybox:1", own),
    ]


def test_names_by_digest_get_others_by_digest():
    own = f"docker.io/library/busybox@{DIGEST}"
    assert retags([own], "one.example") == [(f"one.example/library/busybox@{DIGEST}", own)]


def test_slashes_at_the_end_and_repetitions_are_dropped():
    own = "docker.io/library/busybox:1"
    found = retags([own, own], "one.example/", "one.example", "one.example//", " one.example ")
    assert found == [("one.example/library/busybox:1", own)]


def test_a_prefix_that_is_there_already_is_not_put_there_twice():
    found = retags(["docker.io/rancher/app:1", "docker.io/rancher-x/app:1"], "one.example/rancher")
    assert [name for name, _ in found] == [
        "one.example/rancher/app:1",
        "one.example/rancher/rancher-x/app:1",
    ]


def test_a_name_that_is_there_already_is_left_alone():
    assert retags(["one.example/app:1"], "one.example") == []
    own = ["docker.io/team/app:1", "one.example/team/app:1"]
    assert retags(own, "one.example") == []


def test_what_has_no_name_is_told_of_and_ends_nothing():
    registries = parse_registries(["one.example"])
    long = "docker.io/" + "/".join(["a" * 60] * 4) + ":1"
    plan = plan_retags([DIGEST, "one.example/app", "oci:/x:1", long, "y.example/a:1"], registries)
    assert plan.copies[-1] == ("one.example/a:1", "y.example/a:1")
    assert [problem.partition(" ")[0] for problem in plan.problems] == [
        DIGEST,
        "one.example/app",
        "oci:/x:1",
    ]
    prefixed = parse_registries(["one.example/prefix-of-some-length"])
    assert "255" in plan_retags([long], prefixed).problems[0]


def test_more_registries_than_there_may_be_are_refused():
    with pytest.raises(InvalidArgument, match="too many"):
        parse_registries([f"r{number}.example" for number in range(65)])


def test_without_other_registries_nothing_is_to_be_told_of():
    plan = plan_retags([DIGEST], ())
    assert (plan.copies, plan.problems) == ((), ())


@pytest.mark.parametrize("text", ["", "/", "mirror", "mirror/x", "Bad_Host.example", "a.example:x"])
def test_what_is_no_registry_is_refused(text):
    with pytest.raises(InvalidArgument, match="not a registry"):
        parse_registries([text])

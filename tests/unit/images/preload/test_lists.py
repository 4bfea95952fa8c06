"""Lists of images."""

from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.images.preload.lists import parse_list

DIGEST = "sha256:" + "f" * 64


def names(found):
    return [image.name for image in found.images]


def test_names_are_canonical_and_where_they_stand_is_known():
    found = parse_list(
        b"busybox\nregistry.example:5000/team/app:1\n  busybox@%s  " % DIGEST.encode()
    )
    assert names(found) == [
        "docker.io/library/busybox:latest",
        "registry.example:5000/team/app:1",
        f"docker.io/library/busybox@{DIGEST}",
    ]
    assert [image.line for image in found.images] == [1, 2, 3]
    assert found.bad == ()


def test_blank_lines_comments_and_other_systems_line_ends_are_no_fault():
    found = parse_list(b"\xef\xbb\xbf# first\r\n\r\n \t \r\nbusybox:1\r\n#busybox:2\r\n")
    assert names(found) == ["docker.io/library/busybox:1"]
    assert (found.images[0].line, found.bad) == (4, ())


def test_what_is_named_twice_is_one_image():
    assert len(parse_list(b"busybox\ndocker.io/library/busybox:latest").images) == 1


def test_a_bad_line_is_told_of_with_its_number_and_ends_nothing():
    found = parse_list(b"Upper:1\nbusybox\noci:/etc/shadow:x\n\xff\xfe\na b\n" + b"f" * 64)
    assert names(found) == ["docker.io/library/busybox:latest"]
    assert [bad.line for bad in found.bad] == [1, 3, 4, 5, 6]
    assert str(found.bad[0]).startswith("line 1: repository name must be lowercase")


def test_a_line_longer_than_any_reference_ends_nothing():
    """k3s' reader stopped at 64 KiB and did not say so."""
    found = parse_list(b"a" * 70_000 + b"\nbusybox\n")
    assert names(found) == ["docker.io/library/busybox:latest"]
    assert "longer" in found.bad[0].reason
    assert len(str(found.bad[0])) < 200


def test_a_list_that_was_cut_is_told_of_where_it_ends():
    found = parse_list(b"busybox:1\nbusybox:2", is_cut=True)
    assert names(found) == ["docker.io/library/busybox:1"]
    assert found.bad[0].line == 2
    assert str(limits.PRELOAD_LIST_SIZE) in found.bad[0].reason


@given(st.binary(max_size=400), st.booleans())
def test_whatever_it_holds_every_line_is_an_image_a_problem_or_nothing(data, is_cut):
    found = parse_list(data, is_cut=is_cut)
    lines = data.count(b"\n") + 1
    told = [*(image.line for image in found.images), *(bad.line for bad in found.bad)]
    assert all(1 <= line <= lines for line in told)
    assert len(told) == len(set(told))
    assert all("\n" not in str(bad) for bad in found.bad)


@given(
    st.lists(
        st.sampled_from([b"busybox:1", b"x.example/a:2", b"", b"# x", b"BAD", b"\xff", b"a" * 9999])
    ),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_good_lines_are_read_whatever_stands_between_them(lines, end):
    found = parse_list(end.join(lines))
    good = {b"busybox:1": "docker.io/library/busybox:1", b"x.example/a:2": "x.example/a:2"}
    assert names(found) == list(dict.fromkeys(good[line] for line in lines if line in good))
    bad = [n for n, line in enumerate(lines, 1) if line and line not in good and line != b"# x"]
    assert [each.line for each in found.bad] == bad

"""Reading the kernel's table of mounts, in parts."""

import os
from pathlib import Path

import pytest

from imgvol.volumes.mountinfo import (
    by_target,
    find_again,
    find_filesystem,
    is_filesystem,
    is_ours,
    is_target_session,
    mounts_at,
    read_mountinfo,
)

TABLE = rb"""20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 20 0:50 / /run/imgvol/views ro,nosuid,nodev - fuse.imgvol imgvol:/run/imgvol/views ro
31 20 0:50 /abc /mnt/with\040space ro - fuse.imgvol imgvol:/run/imgvol/views ro
32 20 0:50 /abc /mnt/other ro master:1 propagate_from:2 - fuse.imgvol imgvol:/run/imgvol/views ro
33 31 8:1 /srv /mnt/with\040space rw - ext4 /dev/sda1 rw
34 20 8:1 /srv/back\134slash /mnt/back\134slash rw - ext4 /dev/sda1 rw
"""


def test_what_is_at_some_targets_is_what_the_whole_table_says_of_them(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(TABLE)
    whole = read_mountinfo(table)
    for targets in (set(), {b"/mnt/with space"}, {b"/mnt/back\\slash", b"/mnt/other", b"/no"}):
        expected = [one for one in whole if one.root == b"/" or one.mount_point in targets]
        assert mounts_at(targets, table) == expected
    at = by_target(whole)
    assert [one.mount_id for one in at[b"/mnt/with space"]] == [31, 33], "the topmost last"
    assert at[b"/mnt/back\\slash"][0].root == b"/srv/back\\slash"


# A dead target of the daemon before, a living one, the filesystem, and those of another daemon; but
# first, what another user has mounted under the same names.
TARGETS = """38 20 0:58 / /tmp/b ro - fuse.imgvol imgvol:/run/me/views ro,user_id=4711,group_id=0
39 20 0:59 / /tmp/c ro - fuse.imgvol imgvol-target:/run/me/views ro,user_id=4711,group_id=0
40 20 0:60 / /home/me/one ro - fuse.imgvol imgvol-target:/run/me/views ro,user_id={me},group_id=0
41 20 0:61 / /run/me/views ro - fuse.imgvol imgvol:/run/me/views rw,user_id={me},group_id=4711
42 20 0:62 / /home/me/two ro - fuse.imgvol imgvol-target:/run/me/views rw,user_id={me},max_read=9
43 20 0:63 / /home/it/one ro - fuse.imgvol imgvol-target:/run/it/views rw,user_id={me},group_id=0
44 20 0:64 / /home/me/other ro - fuse.other imgvol-target:/run/me/views rw,user_id={me},group_id=0
45 20 0:65 / /home/me/no ro - fuse.imgvol imgvol:/run/me/views rw
"""


def test_targets_of_users_are_ours_and_not_the_filesystem(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(TARGETS.format(me=os.geteuid()))
    whole = read_mountinfo(table)
    views = Path("/run/me/views")
    assert [one.mount_id for one in whole if is_ours(one, views)] == [40, 41, 42]
    assert [one.mount_id for one in whole if is_target_session(one, views)] == [40, 42]
    found = find_filesystem(whole, views)
    assert found is not None
    assert found.mount_id == 41
    assert [one.user_id for one in whole] == [4711, 4711, *[os.geteuid()] * 5, None]


def test_the_latest_filesystem_is_the_one_that_serves(tmp_path):
    """An earlier one is dead, and left below what somebody has mounted over it."""
    table = tmp_path / "mountinfo"
    lines = TARGETS.format(me=os.geteuid()).splitlines()
    latest = lines[3].replace("41 20 0:61", "46 20 0:66")
    table.write_text("\n".join([*lines, latest]))
    found = find_filesystem(read_mountinfo(table), Path("/run/me/views"))
    assert found is not None
    assert found.mount_id == 46


def test_a_mount_is_found_again_where_it_is_now_unless_another_has_its_number(tmp_path):
    table = tmp_path / "mountinfo"
    line = "40 20 0:60 /v {} ro - fuse.imgvol imgvol:/run/views ro,user_id=0"
    table.write_text(line.format("/before"))
    (before,) = read_mountinfo(table)
    table.write_text("400 20 0:60 /v /no ro - fuse.imgvol no ro\n" + line.format("/after"))
    found = find_again(before, table)
    assert found is not None
    assert found.mount_point == b"/after"
    for mine, other in (("0:60", "0:61"), ("/v", "/w"), ("imgvol:", "other:"), ("40 ", "41 ")):
        table.write_text(line.format("/before").replace(mine, other))
        assert find_again(before, table) is None


@pytest.mark.parametrize("kind", [is_ours, is_filesystem, is_target_session])
def test_what_another_user_has_mounted_under_our_name_is_not_ours(tmp_path, kind):
    table = tmp_path / "mountinfo"
    table.write_text(TARGETS.format(me=os.geteuid()))
    forged = read_mountinfo(table)[:2]
    assert not any(kind(one, Path("/run/me/views")) for one in forged)
    assert all(is_ours(one, Path("/run/me/views"), user_id=4711) for one in forged)

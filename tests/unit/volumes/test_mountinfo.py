"""Reading the kernel's table of mounts, in parts."""

from imgvol.volumes.mountinfo import by_target, mounts_at, read_mountinfo

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

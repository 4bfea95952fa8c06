"""Every system call that would change a view is refused as one on a read-only filesystem is."""

import os
import stat

import pytest

from support import transports
from support.agent import Agent
from support.images import Image, Layer, directory, file, symlink, write_layout

pytestmark = [pytest.mark.fuse, transports.each]

NOBODY = 65534


def calls(view):
    """Name, command, arguments. All entries are open to everybody, so only the kind of
    filesystem can be the reason for a refusal."""

    def os_call(function, *arguments, **options):
        return function, "os", {"function": function, "arguments": arguments, "options": options}

    def opened(name, path, flags):
        return name, "open", {"path": path, "flags": flags}

    data, new, inside = f"{view}/file", f"{view}/new", f"{view}/directory"
    return [
        opened("open for writing", data, os.O_WRONLY),
        opened("open for reading and writing", data, os.O_RDWR),
        opened("open to append", data, os.O_WRONLY | os.O_APPEND),
        opened("open to truncate", data, os.O_WRONLY | os.O_TRUNC),
        opened("open to read and truncate", data, os.O_RDONLY | os.O_TRUNC),
        opened("open to create", new, os.O_WRONLY | os.O_CREAT),
        opened("open to create only", new, os.O_RDWR | os.O_CREAT | os.O_EXCL),
        opened("open a file without a name", inside, os.O_RDWR | os.O_TMPFILE),
        os_call("mkdir", new),
        os_call("mknod", new, stat.S_IFREG | 0o644),
        os_call("mkfifo", new),
        os_call("unlink", data),
        os_call("rmdir", inside),
        os_call("rename", data, new),
        os_call("rename", data, f"{inside}/new"),
        os_call("rename", inside, new),
        os_call("link", data, new),
        os_call("symlink", "x", new),
        os_call("chmod", data, 0o600),
        os_call("chmod", inside, 0o700),
        os_call("chown", data, 1, 1),
        os_call("chown", f"{view}/symlink", 1, 1, follow_symlinks=False),
        os_call("utime", data),
        os_call("utime", data, (1, 1)),
        os_call("utime", f"{view}/symlink", (1, 1), follow_symlinks=False),
        os_call("truncate", data, 0),
        os_call("truncate", data, 1 << 20),
        ("setxattr", "set_xattr", {"path": data, "name": "user.new"}),
        ("setxattr of a directory", "set_xattr", {"path": inside, "name": "user.new"}),
        os_call("removexattr", data, "user.there"),
        ("FS_IOC_SETFLAGS", "set_flags", {"path": data}),
        ("bind a socket", "bind", {"path": new}),
    ]


IMAGE = Image(
    [
        Layer(
            [
                directory("./", mode=0o777),
                file("file", b"content", mode=0o666, xattrs={"user.there": b"x"}, uid=NOBODY),
                directory("directory", mode=0o777, uid=NOBODY),
                symlink("symlink", "file", uid=NOBODY),
            ]
        )
    ]
)


@pytest.fixture(scope="module")
def view(shared_daemon, tmp_path_factory):
    layout = write_layout(tmp_path_factory.mktemp("readonly"), {"x": IMAGE})
    target = shared_daemon.target("readonly")
    shared_daemon.run("mount", f"oci:{layout}:x", target)
    yield target
    shared_daemon.run("unmount", target)


@pytest.fixture(scope="module", params=["root", "owner"])
def writer(request):
    # The owner's interpreter must be one that every user can run.
    user = {"root": None, "owner": NOBODY}[request.param]
    with Agent(user=user, python="/usr/bin/python3") as started:
        yield started


@pytest.mark.fault("F74")
@pytest.mark.parametrize("number", range(len(calls(""))), ids=[call[0] for call in calls("")])
def test_change_is_refused(view, writer, number):
    _, command, arguments = calls(view)[number]
    assert writer.errno_of(command, **arguments) == "EROFS"


def test_view_itself_refuses_too(shared_daemon, view, agent):
    # Root can go round the volume, to the filesystem below it.
    (name, _), *_ = agent.ask("list", path=str(shared_daemon.run_dir / "views"))
    below = shared_daemon.run_dir / "views" / name
    refused = {call[0]: agent.errno_of(call[1], **call[2]) for call in calls(str(below))}
    assert set(refused.values()) == {"EROFS"}, refused


def test_nothing_has_changed(view, agent):
    assert {name for name, _ in agent.ask("list", path=view)} == {"file", "directory", "symlink"}
    assert agent.ask_bytes("content", path=f"{view}/file") == b"content"
    assert agent.ask("stat", path=f"{view}/file")["st_mode"] == stat.S_IFREG | 0o666


def test_mounts_are_read_only_and_without_privileges(shared_daemon, view):
    with open("/proc/self/mountinfo") as mountinfo:
        lines = [line.split() for line in mountinfo if str(shared_daemon.base) in line]
    options = {fields[4]: set(fields[5].split(",")) for fields in lines}
    assert options.keys() == {view, str(shared_daemon.run_dir / "views")}
    for mount_point, found in options.items():
        assert {"ro", "nosuid", "nodev"} <= found, mount_point


@pytest.mark.fault("F79")
def test_other_users_reach_volumes_and_not_the_views(shared_daemon, view):
    with Agent(user=NOBODY, python="/usr/bin/python3") as nobody:
        assert nobody.ask_bytes("content", path=f"{view}/file") == b"content"
        assert nobody.errno_of("list", path=str(shared_daemon.run_dir / "views")) == "EACCES"

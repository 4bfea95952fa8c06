"""What systemd is told, and what programs that the daemon starts inherit of it."""

import os
import socket
import time

import pytest

from imgvol.service_manager import ServiceManager
from imgvol.supervisor import notify


def test_the_environment_is_read_once_and_not_passed_on():
    environ = {
        "NOTIFY_SOCKET": "@hidden",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    told = ServiceManager.from_environment(environ)
    assert (told.address, told.watchdog) == ("\0hidden", 3.0)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
)
def test_nobody_waits_for_a_sign_of_life(environ):
    assert ServiceManager.from_environment(environ).watchdog is None


@pytest.mark.fault("F16")
def test_a_service_manager_is_told_how_far_the_daemon_is(short_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "notify"))
        listening.settimeout(5)
        manager = ServiceManager(address=str(short_path / "notify"))
        manager.starting("starting: volumes", 90)
        manager.ready("serving")
        manager.alive()
        manager.stopping("stopping: volumes")
        assert [listening.recv(200) for _ in range(4)] == [
            b"STATUS=starting: volumes\nEXTEND_TIMEOUT_USEC=90000000",
            b"READY=1\nSTATUS=serving",
            b"WATCHDOG=1",
            b"STOPPING=1\nSTATUS=stopping: volumes",
        ]


def test_what_was_kept_under_names_that_begin_alike_is_taken_with_its_names():
    manager = ServiceManager(inherited={"fuse.1": [7], "api": [3], "fuse.2": [8, 9]})
    assert manager.take_all("fuse.") == [("fuse.1", 7), ("fuse.2", 8), ("fuse.2", 9)]
    assert manager.inherited == {"api": [3]}
    assert manager.take_all("fuse.") == []


def test_a_manager_that_does_not_listen_is_not_waited_for(short_path):
    ServiceManager(address=str(short_path / "nobody")).ready("serving")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "full"))
        slow = ServiceManager(address=str(short_path / "full"))
        for _ in range(5000):  # more than its queue takes
            slow.alive()


def test_who_waits_for_room_does_not_turn_meanwhile(short_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "full"))
        while notify.tell(str(short_path / "full"), "STATUS=of another service"):
            pass
        began = time.thread_time()
        assert not notify.tell(str(short_path / "full"), "READY=1", patience=0.5)
        assert time.thread_time() - began < 0.1

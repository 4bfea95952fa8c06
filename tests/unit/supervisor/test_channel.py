"""The socket at which a supervisor hears its worker, and the descriptors that come with words."""

import os
import socket
import subprocess
import sys

import pytest

from imgvol import limits
from imgvol.supervisor import notify
from imgvol.supervisor.channel import Channel, is_alive
from imgvol.supervisor.datagram import BadDatagram
from imgvol.supervisor.descriptors import Descriptors, close_all, inherited


@pytest.fixture
def channel(short_path):
    channel = Channel(str(short_path))
    yield channel
    channel.close()
    assert os.listdir(short_path) == []


def hear(channel, sender=None):
    return list(channel.iter_received(os.getpid() if sender is None else sender))


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_words_and_descriptors_of_the_worker(channel):
    reading, writing = os.pipe()
    said = ("FDSTORE=1", "FDNAME=x")
    assert notify.tell(channel.address, *said, descriptors=[reading, writing])
    os.close(reading)
    os.close(writing)
    (received,) = hear(channel)
    assert (received.word.stores, received.word.name) == (True, "x")
    reading, writing = received.descriptors
    assert not os.get_inheritable(reading)
    os.write(writing, b"same")
    assert os.read(reading, 10) == b"same"
    close_all(received.descriptors)
    assert hear(channel) == []


def test_nobody_else_is_listened_to(channel):
    program = (
        "import sys; from imgvol.supervisor import notify; notify.tell(sys.argv[1], 'READY=1')"
    )
    subprocess.run([sys.executable, "-c", program, channel.address], check=True)
    (received,) = hear(channel)
    assert isinstance(received.word, BadDatagram)
    assert "not the worker" in str(received.word)


@pytest.mark.parametrize(
    "data", [b"x" * (limits.NOTIFY_SIZE + 1), b"\xff", b"FDSTORE=1\nFDNAME=a b"]
)
def test_what_is_refused_can_still_be_closed(channel, data):
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        ours = os.dup(0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ours.to_bytes(4, sys.byteorder))]
        sending.sendmsg([data], rights, 0, channel.address)
        os.close(ours)
    (received,) = hear(channel)
    assert isinstance(received.word, BadDatagram)
    close_all(received.descriptors)
    assert open_descriptors() == before


def test_one_batch_at_a_time_and_a_full_queue_is_not_waited_for(channel, monkeypatch):
    count = 0
    while notify.tell(channel.address, "WATCHDOG=1"):
        count += 1
    assert count > 0
    monkeypatch.setattr(limits, "NOTIFY_BATCH", 3)
    assert [received.word.is_alive for received in hear(channel)] == [True] * 3
    monkeypatch.setattr(limits, "NOTIFY_BATCH", 10_000)
    assert len(hear(channel)) == count - 3


def test_sockets_of_the_dead_are_swept_and_those_of_the_living_stay(short_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(short_path / ".supervisor.1"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as living:
        living.bind(str(short_path / ".supervisor.2"))
        channel = Channel(str(short_path))
        assert set(os.listdir(short_path)) == {".supervisor.2", f".supervisor.{os.getpid()}"}
        assert is_alive(str(short_path), 2)
        channel.close()
    assert not is_alive(str(short_path), 2)
    assert not is_alive(str(short_path / "nowhere"), 2)


def test_a_directory_with_a_long_name(short_path):
    directory = short_path / ("d" * 150)
    directory.mkdir()
    channel = Channel(str(directory))
    assert notify.tell(channel.address, "READY=1")
    assert hear(channel)[0].word.is_ready
    assert is_alive(str(directory), os.getpid())
    channel.close()


# --- what is kept -------------------------------------------------------------------------------


def test_descriptors_are_kept_up_to_a_bound_and_closed_beyond(monkeypatch):
    monkeypatch.setattr(limits, "DESCRIPTORS_KEPT", 3)
    before = open_descriptors()
    kept = Descriptors()
    assert kept.add("a", [os.dup(0), os.dup(0)])
    assert not kept.add("b", [os.dup(0), os.dup(0)])
    assert kept.add("a", [os.dup(0)])
    assert [name for name, _ in kept] == ["a", "a", "a"]
    assert open_descriptors() == before + 3
    kept.remove("b")
    assert len(kept) == 3
    kept.remove("a")
    assert len(kept) == 0
    assert open_descriptors() == before


INHERIT = """
import json, os
from imgvol import limits
from imgvol.supervisor.descriptors import inherited
limits.DESCRIPTORS_KEPT = 2
os.environ["LISTEN_PID"] = str(os.getpid())
found = inherited(os.environ)
left = [n for n in range(3, 6) if os.path.exists(f"/proc/self/fd/{n}")]
flags = [os.get_inheritable(fd) for _, fd in found]
print(json.dumps([found, flags, left, [n for n in os.environ if n.startswith("LISTEN")]]))
"""


def test_what_is_inherited_is_named_bounded_and_goes_no_further(short_path):
    script = f"exec {sys.executable} -c '{INHERIT}' 3</dev/null 4</dev/null 5</dev/null"
    environment = {**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "api:a b:c"}
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[[["api", 3], ["unknown", 4]], [false, false], [3, 4], []]'


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": ""},
    ],
)
def test_what_is_not_meant_for_us_is_left_alone(environment):
    assert inherited(environment) == []
    assert environment == {}

"""The agent: what it answers, and what happens when it cannot."""

import os

import pytest

from support.agent import Agent, AgentError, AgentStuckError


@pytest.fixture
def agent():
    with Agent() as started:
        yield started


def test_reads_agree(agent, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    fd = agent.ask("open", path=str(tmp_path / "file"))
    for offset, size in ((0, 10), (4095, 4098), (299_990, 10)):
        expected = data[offset : offset + size]
        for method in ("pread", "mmap", "sendfile"):
            assert agent.ask_bytes(method, fd=fd, size=size, offset=offset) == expected, method
    assert agent.ask_bytes("sendfile", fd=fd, size=200_000, offset=200_000) == data[200_000:]


def test_names_of_any_bytes_pass(agent, tmp_path):
    name = os.fsdecode(b"\xff\xfe new\nline")
    (tmp_path / name).write_bytes(b"x")
    assert [found for found, _ in agent.ask("list", path=str(tmp_path))] == [name]


def test_errors_of_the_system_come_back_as_such(agent, tmp_path):
    assert agent.errno_of("stat", path=str(tmp_path / "absent")) == "ENOENT"
    assert agent.errno_of("os", function="rmdir", arguments=["/proc/self"]) != "OK"
    with pytest.raises(FileNotFoundError):
        agent.ask("content", path=str(tmp_path / "absent"))


def test_other_errors_do_not_pass_as_such(agent):
    with pytest.raises(AgentError, match="TypeError"):
        agent.ask("pread")


def test_stuck_agent_is_left_behind(agent, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AgentStuckError, match=r"no answer in 0\.2 s"):
        agent.ask("open", path=str(tmp_path / "fifo"), deadline=0.2)

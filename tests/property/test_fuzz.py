"""The fuzzer: it runs over every parser, and it finds what it is there to find."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz.__main__ import replay, run_all
from fuzz.mutation import LARGEST, mutated
from fuzz.parsers import PARSERS, Parser
from imgvol.errors import ContentError

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_no_parser_fails_within_a_second(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", "1", "--seed", "1"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    counts = {name: int(rest.split()[0]) for name, rest in _reports(done.stdout)}
    assert counts.keys() == PARSERS.keys()
    assert min(counts.values()) > 20, "a parser that hardly ran"
    assert list(tmp_path.iterdir()) == []


def _reports(output: str) -> list[tuple[str, str]]:
    lines = [line.partition(": ") for line in output.splitlines()[1:]]
    return [(name, rest) for name, _, rest in lines]


def undeclared(data: bytes) -> None:
    if data[:1] != b"g":
        raise KeyError(data)


def endless(data: bytes) -> None:
    while data[:1] != b"g":
        time.sleep(0.01)


def greedy(data: bytes) -> None:
    if data[:1] != b"g":
        b"x" * (300 << 20)


def crashing(data: bytes) -> None:
    if data[:1] != b"g":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("parser", "said"),
    [
        (undeclared, "KeyError"),
        (endless, "more than 0.5 s"),
        (greedy, "bytes of memory"),
        (crashing, "ended with -9"),
    ],
)
def test_what_a_parser_must_not_do_is_found_and_kept(parser, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    if parser is endless:
        monkeypatch.setattr("fuzz.__main__.CASE_SECONDS", 0.5)
    monkeypatch.setattr("fuzz.__main__.CASE_MEMORY", 200 << 20)
    monkeypatch.setitem(PARSERS, "broken", Parser(parser, lambda: [b"good " * 20]))
    assert not run_all(["broken"], 1, 20)
    output = capfd.readouterr().out
    (file,) = tmp_path.iterdir()
    assert f"scripts/fuzz --replay {file.name}" in output
    assert said in output
    if parser is undeclared:
        assert not replay(file)


def test_a_declared_error_is_none(monkeypatch, tmp_path):
    def refuse(data: bytes) -> None:
        raise ContentError("no")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PARSERS, "strict", Parser(refuse, lambda: [b"good"]))
    assert run_all(["strict"], 1, 0.1)


@pytest.mark.parametrize("name", PARSERS)
def test_cases_are_the_same_for_the_same_seed(name):
    seeds = PARSERS[name].seeds()
    one, other = (
        [mutated(seeds, chosen) for _ in range(100)]
        for chosen in (random.Random(3), random.Random(3))
    )
    assert one == other
    assert len(set(one)) > 50
    assert all(len(case) <= LARGEST for case in one)

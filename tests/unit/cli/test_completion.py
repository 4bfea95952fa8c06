"""Shell completion: values from the daemon, silence without it, bash's colons."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from imgvol.cli.main import run
from support.api_fakes import FakeDaemon, make_image, served_in_thread


@pytest.fixture
def directory(short_path):
    return short_path / "run"


@pytest.fixture
def daemon(directory):
    fake = FakeDaemon(str(directory))
    fake.images.images["ghcr.io/example/app:1.2"] = make_image("ghcr.io/example/app:1.2")
    with served_in_thread(directory / "imgvol.sock", fake):
        yield fake


@pytest.fixture
def complete(directory, monkeypatch, capsys):
    def complete(line):
        monkeypatch.setenv("IMGVOL_RUN", str(directory))
        monkeypatch.setenv("_IMGVOL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", "-1")
        assert run([]) == 0
        monkeypatch.delenv("_IMGVOL_COMPLETE")
        out, err = capsys.readouterr()
        assert err == ""
        return [item.partition(",")[2] for item in out.splitlines() if item]

    return complete


def test_commands_and_options(complete):
    assert complete("imgvol mo") == ["mount"]
    assert "--platform" in complete("imgvol pull --pl")
    assert complete("imgvol im") == ["import", "images"]
    assert "--link" in complete("imgvol import --l")


def test_images_in_both_spellings(daemon, complete):
    assert complete("imgvol ls ") == [
        "alpine:3.20",
        "docker.io/library/alpine:3.20",
        "ghcr.io/example/app:1.2",
    ]
    assert complete("imgvol inspect ghcr.io/example/app:") == ["ghcr.io/example/app:1.2"]
    assert complete("imgvol export alpine:3.20 ghcr.io/") == ["ghcr.io/example/app:1.2"]


def test_paths_in_images(daemon, complete):
    assert complete("imgvol cat alpine:3.20 /e") == ["/etc/"]
    # Names that cannot be typed are not offered.
    assert complete("imgvol cat alpine:3.20 /etc/") == ["/etc/os-release", "/etc/two words"]


def test_global_options_count(daemon, complete, directory, monkeypatch):
    values = complete(f"imgvol --run {directory} ls alp")
    assert values == ["alpine:3.20"]


def test_volumes(daemon, complete, directory):
    run(["--run", str(directory), "mount", "-q", "alpine:3.20", "/mnt"])
    assert complete("imgvol unmount /m")[-1] == "/mnt"
    assert "00000000" in complete("imgvol unmount 0")


def test_no_daemon_no_noise_no_wait(complete, directory):
    started = time.monotonic()
    assert complete("imgvol ls al") == []
    assert complete("imgvol unmount /") == []
    assert time.monotonic() - started < 1
    assert not directory.exists()  # and none was started


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_printed(shell, capsys):
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_IMGVOL_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True)


def test_bash_replaces_only_what_follows_the_colon(daemon, directory, tmp_path):
    program = tmp_path / "imgvol"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m imgvol "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(imgvol completion bash)\n"
        'COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; compopt() { :; }\n'
        '_imgvol_completion imgvol; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    for line, reply in [
        ("imgvol ls alpine:3", "3.20"),
        ("imgvol ls alp", "alpine:3.20"),
        ("imgvol mount ghcr.io/example/app:", "1.2"),
        ("imgvol cat alpine:3.20 /etc/t", "/etc/two\\ words"),
    ]:
        done = subprocess.run(
            ["bash", "-c", script, "bash", line],
            env={**os.environ, "PATH": path, "IMGVOL_RUN": str(directory)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [reply]

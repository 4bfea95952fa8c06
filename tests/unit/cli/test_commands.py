"""The commands, whole, against a fake daemon on a real socket."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from imgvol.cli import text
from imgvol.cli.main import COMMANDS, cli, main, run
from imgvol.errors import Conflict
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.images.streams import Showing
from imgvol.registry import Credential, Secret
from imgvol.volumes.options import WHOLE_VIEW, BindOptions, Propagation, parse_mappings
from support.api_fakes import broken_content, invalid_reference

ALPINE_ID = "sha256:0111" + "0" * 60


@pytest.fixture
def imgvol(directory, capfdbinary):
    """Run a command; gives its status, and what it wrote, as bytes."""

    def imgvol(*arguments):
        places = ["--run", str(directory), "--root", str(directory.parent / "root")]
        status = run([*places, *arguments])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return status, out, err

    return imgvol


@pytest.fixture
def on_terminal(monkeypatch):
    monkeypatch.setattr(text, "has_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def lines(data):
    return data.decode().splitlines()


# --- images -------------------------------------------------------------------------------------


def test_images(daemon, imgvol):
    status, out, err = imgvol("images")
    assert (status, err) == (0, b"")
    assert lines(out)[0].split() == ["IMAGE", "ID", "PLATFORM", "LAYERS", "SIZE", "PULLED"]
    assert lines(out)[1].startswith("alpine:3.20  011100000000  linux/amd64")


def test_images_says_who_has_pinned_them_if_anybody_has(daemon, imgvol):
    (image,) = daemon.images.images.values()
    image.is_pinned, image.pinned_by = True, ("preload:/a.tar", "preload:/b.tar", "user")
    _, out, _ = imgvol("images")
    assert lines(out)[0].split()[-3:] == ["PULLED", "PINNED", "BY"]
    assert lines(out)[1].endswith("  preload,user")


def test_images_json_and_quiet(daemon, imgvol):
    _, out, _ = imgvol("images", "--json")
    assert json.loads(out)[0]["names"] == ["docker.io/library/alpine:3.20"]
    _, before, _ = imgvol("--json", "images")
    assert before == out
    assert imgvol("images", "-q")[1].decode().strip() == ALPINE_ID


def test_pull_prints_the_id_and_is_quiet_in_pipes(daemon, imgvol):
    status, out, err = imgvol("pull", "--platform", "linux/arm64", "--plain-http", "busybox:1")
    assert (status, out.decode().strip(), err) == (0, ALPINE_ID, b"")
    options = PullOptions(plain_http=True)
    assert daemon.images.calls == [("pull", "busybox:1", "linux/arm64", options)]


def test_a_password_is_read_from_standard_input(daemon, imgvol, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("pass word\n"))
    status, *_ = imgvol("pull", "--username", "jane", "--password-stdin", "busybox:1")
    assert status == 0
    login = Credential(username="jane", password=Secret("pass word"))
    assert daemon.images.calls[0][3] == PullOptions(credential=login)


def test_a_password_is_asked_for_on_a_terminal_and_not_shown(daemon, directory):
    places = ["--run", str(directory), "--root", str(directory.parent / "root")]
    arguments = [*places, "pull", "--username", "jane", "busybox:1"]
    terminal = _Terminal(b"pass word\n")
    result = CliRunner().invoke(cli, arguments, input=terminal)
    assert result.exit_code == 0, result.output
    assert "Password: " in result.output
    assert "pass word" not in result.output
    assert daemon.images.calls[0][3].credential.password == Secret("pass word")


class _Terminal(io.BytesIO):
    """Input that somebody types."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--username", "jane"], b"no password is given"),
        (["--username", "jane", "--password-stdin"], b"no password is given"),
        (["--password-stdin"], b"a password without a user name"),
    ],
)
def test_half_a_login_is_refused(daemon, imgvol, monkeypatch, options, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    status, _, err = imgvol("pull", *options, "busybox:1")
    assert status == 1
    assert said in err
    assert daemon.images.calls == []


def test_pull_stats_and_json(daemon, imgvol):
    _, out, err = imgvol("pull", "--stats", "busybox:1")
    assert out.decode().strip() == ALPINE_ID
    assert "STAGE" in err.decode()
    assert "54.5 MB/s" in err.decode()
    document = json.loads(imgvol("pull", "--json", "busybox:1")[1])
    assert document["stats"]["resolve_seconds"] == 0.12


def test_local_sources_get_absolute_paths(daemon, imgvol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    imgvol("pull", "--ca-file", "ca.pem", "oci:./build:v1")
    imgvol("pull", "oci-archive:app.tar")
    imgvol("pull", "docker-archive:/abs/app.tar:x")
    asked = [call[1] for call in daemon.images.calls]
    assert asked == [
        f"oci:{tmp_path}/build:v1",
        f"oci-archive:{tmp_path}/app.tar",
        "docker-archive:/abs/app.tar:x",
    ]
    assert daemon.images.calls[0][3].ca_file == f"{tmp_path}/ca.pem"


def test_errors_say_what_to_do_and_cannot_steer_the_terminal(daemon, imgvol):
    daemon.images.pull_error = invalid_reference()
    status, out, err = imgvol("pull", "x")
    assert (status, out) == (1, b"")
    assert lines(err)[0] == "imgvol: not an image reference (reference UPPER\\x1b[31m)"


def test_rmi_goes_on_after_a_failure(daemon, imgvol):
    status, out, err = imgvol("rmi", "nothing:1", "alpine:3.20")
    assert status == 1
    assert b"image is not in the store" in err
    assert lines(out)[0] == "untagged docker.io/library/alpine:3.20"
    assert b"Freed 60.0 MB" in err


def test_inspect_shows_hostile_values_harmlessly(daemon, imgvol):
    status, out, _ = imgvol("inspect", "alpine:3.20")
    assert status == 0
    assert b"\x1b" not in out
    assert "EVIL=\\033[2J" in out.decode()
    assert "/bin/sh -c 'echo hi'" in out.decode()
    details = json.loads(imgvol("inspect", "--json", "alpine:3.20")[1])
    assert details["config"]["config"]["Env"][1] == "EVIL=\x1b[2J"


# --- files --------------------------------------------------------------------------------------


def test_ls_gives_pipes_the_bytes(daemon, imgvol):
    _, out, _ = imgvol("ls", "alpine:3.20", "/etc")
    assert out.split(b"\n") == [
        b"evil\x1b]0;owned\x07",
        b"latin\xe9.conf",
        b"os-release",
        b"two words",
        b"",
    ]


def test_ls_gives_terminals_escapes(daemon, imgvol, on_terminal):
    for habits in (["-l"], [], ["-R"], ["-i"]):
        _, out, _ = imgvol("ls", *habits, "alpine:3.20", "/etc")
        assert b"\x1b" not in out
        assert b"\\033]0;owned\\a" in out
        assert b"latin\\351.conf" in out


def test_ls_long(daemon, imgvol):
    _, out, _ = imgvol("ls", "-lh", "alpine:3.20")
    found = lines(out)
    assert re.fullmatch(
        r"lrwxrwxrwx   1     0     0     1.2 kB \d{4}-\d\d-\d\d \d\d:\d\d bin -> usr/bin", found[0]
    )
    assert found[1].startswith("drwxr-xr-x ")
    assert " 1, 3 " in found[2]


def test_ls_json_is_one_object_per_line(daemon, imgvol):
    _, out, _ = imgvol("ls", "--json", "alpine:3.20", "/etc")
    entries = [json.loads(line) for line in out.splitlines()]
    assert entries[1]["path"].encode("utf-8", "surrogateescape") == b"/etc/latin\xe9.conf"
    assert "event" not in entries[0]


def test_an_image_that_is_not_here_is_pulled_first(daemon, imgvol):
    status, _, _ = imgvol("ls", "--insecure", "busybox:1", "/etc")
    assert status == 0
    kinds = [call[0] for call in daemon.images.calls]
    assert kinds == ["find", "pull", "find"]
    assert daemon.images.calls[1][3].insecure is True


def test_a_path_that_is_not_there_pulls_nothing(daemon, imgvol):
    status, _, err = imgvol("ls", "alpine:3.20", "/nothing")
    assert status == 1
    assert lines(err) == ["imgvol: no such path in the image (path /nothing)"]
    assert "pull" not in [call[0] for call in daemon.images.calls]


def test_cat_is_exact_and_goes_on_after_a_failure(daemon, imgvol):
    daemon.inspection.content[b"/bin/x"] = [bytes(range(256)), b"\x1b[2J"]
    status, out, err = imgvol("cat", "alpine:3.20", "/nothing", "bin/x", "/empty")
    assert status == 1
    assert out == bytes(range(256)) + b"\x1b[2J"
    assert b"no such path" in err


def test_cat_of_a_file_that_breaks_off_fails(daemon, imgvol):
    daemon.inspection.content_error = broken_content()
    status, _, err = imgvol("cat", "alpine:3.20", "/etc/os-release")
    assert status == 1
    assert err


def test_find(daemon, imgvol):
    _, out, _ = imgvol("find", "alpine:3.20", "/", "-type", "f,l", "-name", "*[on]*")
    assert out.split(b"\n")[:2] == [b"/bin", b"/etc/evil\x1b]0;owned\x07"]
    _, out, _ = imgvol("find", "alpine:3.20", "/etc", "-iname", "LATIN*", "-print0")
    assert out == b"/etc/latin\xe9.conf\0"
    _, out, _ = imgvol("find", "alpine:3.20", "-maxdepth", "0")
    assert out == b"/\n"
    status, _, err = imgvol("find", "alpine:3.20", "-type", "x")
    assert status == 2
    assert b"'x' is not one of" in err


def test_du(daemon, imgvol):
    _, out, _ = imgvol("du", "--layers", "alpine:3.20", "/usr")
    assert lines(out)[1].split() == ["7.9", "MB", "1,234", "1,000", "200", "/usr"]
    assert lines(out)[3].split() == ["LAYER", "SIZE", "ENTRIES"]
    assert json.loads(imgvol("du", "--json", "alpine:3.20")[1])["bytes"] == 7_900_000


# --- volumes ----------------------------------------------------------------------------------


def test_mount_says_what_is_bound_and_how(daemon, imgvol, tmp_path):
    ids = ["--uidmap", "0:100000:1000", "--uidmap", "1000:0:1", "--gidmap", "0:100000:65536"]
    options = ["--nosymfollow", "--subpath", "etc", "--dirs-only", "--propagation", "rslave", *ids]
    assert imgvol("mount", *options, "alpine:3.20", str(tmp_path))[0] == 0
    assert daemon.volumes.calls[-1]["bind"] == BindOptions(
        nosymfollow=True,
        sub_path=b"etc",
        dirs_only=True,
        propagation=Propagation.HOST_TO_CONTAINER,
        uid_mappings=parse_mappings("0:100000:1000,1000:0:1"),
        gid_mappings=parse_mappings("0:100000:65536"),
    )
    assert imgvol("mount", "alpine:3.20")[0] == 0
    assert daemon.volumes.calls[-1]["bind"] == WHOLE_VIEW


def test_mount_ps_unmount(daemon, imgvol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnt").mkdir()
    status, out, _ = imgvol("mount", "--noexec", "--pull", "never", "alpine:3.20", "mnt")
    assert (status, out.decode()) == (0, f"{tmp_path}/mnt\n")
    asked = daemon.volumes.calls[0]
    assert (asked["target"], asked["bind"].noexec, asked["pull"]) == (
        f"{tmp_path}/mnt",
        True,
        "never",
    )
    _, out, _ = imgvol("ps")
    assert lines(out)[1].split()[:2] == ["00000000", "alpine:3.20"]
    assert imgvol("ps", "-q")[1] == b"00000000\n"
    assert json.loads(imgvol("ps", "--json")[1])[0]["path"] == f"{tmp_path}/mnt"
    assert imgvol("unmount", "--detach", "mnt")[0] == 0
    assert daemon.volumes.calls[-1] == {"unmount": f"{tmp_path}/mnt", "detach": True}


@pytest.mark.parametrize(
    ("arguments", "readiness"),
    [
        ([], "LAZY"),
        (["--verify=full"], "VERIFIED"),
        (["--wait"], "STORED"),
        (["--wait=all"], "STORED"),
        (["--wait=index"], "LAZY"),
        (["--wait", "--verify=full"], "STORED"),
        (["--lazy=off"], "STORED"),
    ],
)
def test_mount_waits_for_what_was_asked(daemon, imgvol, arguments, readiness):
    assert imgvol("mount", *arguments, "alpine:3.20")[0] == 0
    assert daemon.volumes.calls[0]["readiness"] is Readiness[readiness]


@pytest.mark.parametrize(
    ("arguments", "showing"),
    [
        ([], None),
        (["--verify=stream"], Showing.ARRIVING),
        (["--verify=stream", "--wait=index"], None),
        (["--wait=manifest"], Showing.VERIFIED),
    ],
)
def test_mount_shows_meanwhile_what_was_asked(daemon, imgvol, arguments, showing):
    assert imgvol("mount", *arguments, "alpine:3.20")[0] == 0
    assert daemon.volumes.calls[0]["showing"] is showing


def test_an_image_may_be_called_like_an_option(daemon, imgvol):
    assert imgvol("mount", "--", "--wait")[0] == 0
    (asked,) = daemon.volumes.calls
    assert (asked["image"], asked["readiness"]) == ("--wait", Readiness.LAZY)


def test_what_to_wait_for_is_written_with_an_equals_sign(daemon, imgvol):
    """As `--wait` alone is an option, too, and what follows it then is the image."""
    status, _, error = imgvol("mount", "--wait", "index", "alpine:3.20")
    assert status == 2
    assert b"Did you mean --wait=index?" in error
    assert not daemon.volumes.calls


def test_mount_without_directory_prints_the_view(daemon, imgvol):
    _, out, _ = imgvol("mount", "alpine:3.20")
    assert out == b"/run/imgvol/views/333\n"
    assert daemon.volumes.calls[0]["target"] is None
    assert imgvol("unmount", "00000000")[0] == 0


def test_mount_on_a_name_that_is_not_utf_8(daemon, imgvol, tmp_path):
    target = os.fsencode(tmp_path) + b"/\xe9"
    os.mkdir(target)
    _, out, _ = imgvol("mount", "alpine:3.20", os.fsdecode(target))
    assert out == target + b"\n"


def test_a_mount_that_fails_says_why(daemon, imgvol, tmp_path):
    imgvol("mount", "alpine:3.20", str(tmp_path))
    status, _, err = imgvol("mount", "alpine:3.20", str(tmp_path))
    assert status == 1
    assert b"mounted already" in err


def test_unmount_goes_on_after_a_failure(daemon, imgvol):
    imgvol("mount", "alpine:3.20")
    status, _, err = imgvol("unmount", "nothing", "00000000")
    assert status == 1
    assert b"imgvol ps lists the volumes" in err
    assert not daemon.volumes.volumes


def test_an_empty_table_explains_itself_on_a_terminal(daemon, imgvol, on_terminal):
    assert b"imgvol mount IMAGE DIR" in imgvol("ps")[2]


# --- daemon ------------------------------------------------------------------------------------


def test_df_and_version(daemon, imgvol):
    _, out, _ = imgvol("df")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in out.decode().splitlines())
    assert facts["layers size"] == "123.5 MB"
    assert facts["copied, not fetched"] == "8.0 MB (300 pieces)"
    assert facts["shared, not fetched"] == "50.0 MB (2 layers)"
    assert facts["linked, not stored"] == "1.0 MB"
    assert re.search("layers size +123.5 MB", out.decode())
    assert re.search("stays, mounted +15 B", out.decode())
    assert re.search("evicts +above 90 B, down to 80 B", out.decode())
    assert json.loads(imgvol("df", "--json")[1])["space"]["quota"] == 100
    _, out, _ = imgvol("version")
    assert f"process {os.getpid()}" in out.decode()
    assert json.loads(imgvol("version", "--json")[1])["daemon"]["api"] == "v1"


def test_gc_to_a_size_evicts_or_tells_what_would_go(daemon, imgvol):
    _, out, _ = imgvol("gc", "--to", "1k", "--dry-run")
    assert "would go" in out.decode()
    assert "in 2 layers" in out.decode()
    status, out, notes = imgvol("gc", "--to", "1k")
    assert status == 0
    assert "evicted" in out.decode()
    assert "freed 1.0 kB" in notes.decode()
    assert json.loads(imgvol("gc", "--to", "1k", "--json")[1])["given_back"] == 1000
    status, _, notes = imgvol("gc", "--to", "many")
    assert status != 0
    assert "not a size" in notes.decode()


def test_a_local_source_without_a_path_is_not_the_current_directory(daemon, imgvol):
    imgvol("pull", "oci:")
    imgvol("pull", "oci::v1")
    assert [call[1] for call in daemon.images.calls] == ["oci:", "oci::v1"]


def test_stop_waits_until_the_daemon_has_gone(daemon, imgvol, directory, monkeypatch):
    # The fake's process is this one, which stays: then the socket tells.
    monkeypatch.setattr("imgvol.cli.system.open_process", lambda _path: None)
    assert imgvol("stop")[0] == 0
    assert daemon.stopped
    assert not (directory / "imgvol.sock").exists()


def test_stop_refuses_while_volumes_are_mounted(daemon, imgvol, directory):
    target = directory / "mnt"
    target.mkdir()
    assert imgvol("mount", "alpine:3.20", str(target))[0] == 0
    status, _, err = imgvol("stop")
    assert status == 1
    assert b"volumes are mounted" in err
    assert b"imgvol stop --force" in err
    assert not daemon.stopped


def test_commands_that_start_no_daemon(imgvol):
    assert imgvol("stop") == (0, b"", b"No daemon was running.\n")
    assert b"not running" in imgvol("version")[1]


# --- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mont"], "did you mean mount?"),
        (["nonsense\x1b[2J"], "there is no command"),
        (["mount"], "Missing argument 'IMAGE'"),
        (["ls", "--nonsense", "x"], "No such option"),
        (["mount", "--pull", "maybe", "x"], "maybe"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_misuse_exits_with_2(imgvol, arguments, said):
    status, out, err = imgvol(*arguments)
    assert (status, out) == (2, b"")
    assert said in err.decode()
    assert b"\x1b" not in err
    assert b"--help" in err


def test_defects_are_told_in_our_own_words(daemon, imgvol, monkeypatch):
    monkeypatch.setattr("imgvol.cli.images._image_rows", lambda _: 1 / 0)
    status, _, err = imgvol("images")
    assert status == 1
    assert lines(err)[0] == "imgvol: ZeroDivisionError: division by zero"
    assert b"Traceback" in imgvol("-v", "images")[2]


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_has_examples_and_fits(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(cli, ["--help"] if name is None else [name, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())


def test_help_alone_needs_no_arguments(capsys):
    assert run([]) == 0
    assert "mount" in capsys.readouterr().out


def environment():
    return {**os.environ, "PYTHONPATH": "", "COLUMNS": "80"}


def start(directory, *arguments, **habits):
    command = [sys.executable, "-m", "imgvol", "--run", str(directory), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), **habits
    )


def test_control_c_cancels_the_pull_and_exits_with_130(daemon, directory):
    daemon.images.pull_steps, daemon.images.pull_pause = 10_000, 0.05
    with start(directory, "pull", "busybox:1") as process:
        assert daemon.images.pull_started.wait(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert daemon.images.pull_cancelled.wait(5)


def test_a_reader_that_leaves_early_is_no_noise(daemon, directory):
    daemon.inspection.content[b"/big"] = [bytes(65536)] * 100
    with start(directory, "cat", "alpine:3.20", "/big") as process:
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(10)
    assert process.returncode == 141
    assert err == b""


def test_simple_commands_import_little(daemon, directory):
    program = (
        "import sys\n"
        "from imgvol.cli.main import run\n"
        "run(sys.argv[1:])\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--run", str(directory), "ps"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    loaded = set(done.stderr.split())
    heavy = {"rich", "trio", "httpx", "ssl", "http.client", "subprocess", "asyncio", "sqlite3"}
    assert not heavy & loaded
    assert not any(name.startswith("imgvol.api") for name in loaded)


def test_main_exits(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("imgvol 0.")


def test_many_commands_at_once(daemon, directory, imgvol):
    daemon.volumes.mount_error = Conflict("x")
    results = []

    def ask():
        from imgvol.cli.client import Client

        results.append(Client(str(directory / "imgvol.sock")).call("GET", "/images"))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(results) == 20
    assert time.monotonic() - started < 5

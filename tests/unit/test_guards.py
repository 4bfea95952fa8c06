"""The guards themselves: each must fail what it is there to fail, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def run_pytest(tmp_path):
    """Runs a file of tests under the plugin in a process of its own; returns status and output."""

    def run(source, *, fuse_device="/dev/null", arguments=()):
        (tmp_path / "test_it.py").write_text(source)
        markers = ["fuse: x", "root: x", "servers: x", "alone: x"]
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  " + "\n  ".join(markers))
        environment = {
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "IMGVOL_TEST_FUSE_DEVICE": fuse_device,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        command = [sys.executable, "-m", "pytest", "-p", "support.guards", "-p", "no:cacheprovider"]
        command += ["--basetemp", str(tmp_path / "base"), *arguments, "test_it.py"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


SKIPPED = "import pytest\n@pytest.mark.fuse\ndef test_it():\n    pytest.skip('no umoci')\n"
BESIDE = ("-p", "xdist.plugin", "--numprocesses=2", "--dist=loadfile")


@pytest.mark.parametrize("arguments", [(), BESIDE])
def test_skipped_filesystem_test_fails_the_run_where_fuse_is(run_pytest, arguments):
    status, output = run_pytest(SKIPPED, arguments=arguments)
    assert status == 1
    assert "MUST RUN test_it.py::test_it" in output
    assert "1 skipped" in output.splitlines()[-1]


def test_skipped_filesystem_test_passes_where_no_fuse_is(run_pytest):
    status, output = run_pytest(SKIPPED, fuse_device="/nonexistent")
    assert status == 0
    assert "MUST RUN" not in output


def test_other_skips_pass(run_pytest):
    status, _ = run_pytest("import pytest\ndef test_it():\n    pytest.skip('no vagrant')\n")
    assert status == 0


def test_module_that_skips_itself_fails_the_run(run_pytest):
    status, output = run_pytest("import pytest\npytest.importorskip('no_such_module')\n")
    assert status != 0
    assert "MUST RUN test_it.py" in output


def test_expected_failure_of_a_filesystem_test_passes(run_pytest):
    source = "import pytest\n@pytest.mark.fuse\n@pytest.mark.xfail\ndef test_it():\n    assert 0\n"
    status, _ = run_pytest(source)
    assert status == 0


def test_being_alone_has_a_reason(run_pytest):
    source = "import pytest\n@pytest.mark.alone{}\ndef test_it():\n    pass\n"
    assert run_pytest(source.format("('measures time')"))[0] == 0
    status, output = run_pytest(source.format(""))
    assert status != 0
    assert "test_it.py::test_it does not say why it is alone" in output


def test_tests_of_one_id_do_not_run_beside_each_other(run_pytest, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import pytest\ndef pytest_pycollect_makeitem(collector, name, obj):\n"
        "    if name == 'test_it':\n"
        "        made = [pytest.Function.from_parent(collector, name=name) for _ in range(2)]\n"
        "        return made\n"
    )
    source = "def test_it():\n    pass\n"
    assert run_pytest(source)[0] == 0
    status, output = run_pytest(source, arguments=BESIDE)
    assert status != 0
    assert "more than one test is called test_it.py::test_it" in output


def test_warning_fails(run_pytest):
    status, output = run_pytest(
        "import logging\ndef test_it():\n    logging.getLogger('some.where').warning('odd %s', 1)\n"
    )
    assert status == 1
    assert "WARNING some.where: odd 1" in output


@pytest.mark.parametrize(
    "source",
    [
        "def test_it():\n    logging.info('nothing odd')\n",
        "@pytest.mark.expects_log('od+ 1')\ndef test_it():\n    logging.warning('odd 1')\n",
        "def test_it(caplog):\n    logging.warning('odd')\n    assert 'odd' in caplog.text\n",
    ],
)
def test_expected_lines_pass(run_pytest, source):
    status, output = run_pytest("import logging, pytest\n" + source)
    assert status == 0, output


def test_process_left_behind_fails_and_is_ended(run_pytest, tmp_path):
    status, output = run_pytest(
        "import pytest, subprocess\n@pytest.mark.servers\ndef test_it(tmp_path):\n"
        "    p = subprocess.Popen(['sleep', '543'], start_new_session=True)\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\n"
    )
    assert status == 1
    assert "sleep 543" in output
    pid = (tmp_path / "pid").read_text()
    assert not Path(f"/proc/{pid}/exe").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_mount_left_behind_fails_and_is_undone(run_pytest, tmp_path):
    status, output = run_pytest(
        "import pytest, subprocess\n@pytest.mark.root\ndef test_it(tmp_path):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'left', tmp_path], check=True)\n"
    )
    assert status == 1
    assert "left behind: mount" in output
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_tidy_test_passes(run_pytest):
    status, output = run_pytest(
        "import pytest, subprocess\n@pytest.mark.servers\ndef test_it(short_path):\n"
        "    subprocess.run(['true'], check=True)\n    (short_path / 'x').write_text('x')\n"
    )
    assert status == 0, output

"""A daemon that is killed while it imports (F01, F96): all images of an archive, or none."""

import os
import random
import signal

import pytest

from support import crash, images
from support.bundles import Bundle
from support.daemon import Imgvol
from support.images import Image, Layer, directory, file

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

IS_WHOLE = os.environ.get("IMGVOL_EVERY_CALL") == "1"
LARGE = random.Random(5).randbytes(2_000_000)
BASE = Layer([directory("etc"), file("etc/a", b"a"), file("large", LARGE)], "none")
ONE = Image([BASE, Layer([file("etc/b", b"b" * 5000)], "gzip")])
TWO = Image([BASE], config={"Env": ["A=1"]})
NAMES = {"example.com/one:1", "example.com/two:2"}


@pytest.fixture
def archive(short_path):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), "example.com/one:1")
    bundle.list(bundle.manifest(TWO), "example.com/two:2")
    return bundle.write(short_path / "images.tar")


def imported(base, archive, *, death):
    """Imports with a daemon that dies there; returns which calls an import makes, by kind.

    None: it did not come to that call, for not every run makes as many.
    """
    log = base / "calls"
    log.write_text("")
    imgvol = Imgvol(base, supervisor=False)
    imgvol.prelude = crash.prelude(death, log)
    imgvol.start()
    before = crash.calls(log)
    done = imgvol.run("import", archive, check=False, timeout=60)
    after = crash.calls(log)
    calls = {kind: range(before[kind] + 1, after[kind] + 1) for kind in crash.KINDS}
    if not crash.has_fired(death, log):
        assert done.returncode == 0, done.stderr
        imgvol.terminate()
        return calls if death.number == 0 else None
    assert imgvol.process.wait(10) == -signal.SIGKILL
    assert done.returncode != 0
    crash.lose_unsynced(imgvol.root, log)
    return calls


@pytest.mark.fault("F01")
@pytest.mark.fault("F96")
def test_killed_at_any_call_while_importing(short_path, archive):
    whole = short_path / "whole"
    whole.mkdir(mode=0o755)
    calls = imported(whole, archive, death=crash.Crash("", 0))
    deaths = [crash.Crash(kind, n) for kind in crash.KINDS for n in chosen(calls[kind])]
    fired = set()
    for death in deaths:
        base = short_path / f"{death.kind}-{death.number}"
        base.mkdir(mode=0o755)
        if imported(base, archive, death=death) is None:
            continue
        fired.add(death.kind)
        imgvol = Imgvol(base, supervisor=False)
        imgvol.start()
        found = {name for image in imgvol.json("images") for name in image["names"]}
        assert found in (set(), NAMES), death
        imgvol.run("gc")
        if not found:
            for place in ("layers", "places", "ingest"):
                assert os.listdir(imgvol.root / place) == []
        imgvol.run("import", archive)
        ids = {image["id"] for image in imgvol.json("images")}
        assert ids == {images.sha256(image.config_bytes()) for image in (ONE, TWO)}
        imgvol.terminate()
        assert not imgvol.unexpected_log()
    assert fired == set(crash.KINDS)


def chosen(calls):
    """Of the calls of one kind, those to die at: all, or one in the middle and one at the end."""
    return calls if IS_WHOLE else {calls[len(calls) // 2], calls[-2]}

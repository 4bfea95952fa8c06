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
SAMPLES = 4
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


def imported(base, archive, *options, death):
    """Imports with a daemon that dies there; returns how many calls there were, by kind.

    None: it did not come to that call, for not every run makes as many.
    """
    log = base / "calls"
    log.write_text("")
    imgvol = Imgvol(base)
    imgvol.prelude = crash.prelude(death, log)
    imgvol.start()
    done = imgvol.run("import", *options, archive, check=False, timeout=60)
    if not crash.has_fired(death, log):
        assert done.returncode == 0, done.stderr
        imgvol.terminate()
        return crash.calls(log) if death.number == 0 else None
    assert imgvol.process.wait(10) == -signal.SIGKILL
    assert done.returncode != 0
    crash.lose_unsynced(imgvol.root, log)
    return crash.calls(log)


@pytest.mark.fault("F01")
@pytest.mark.fault("F96")
@pytest.mark.parametrize("kind", crash.KINDS)
def test_killed_at_any_call_while_importing(short_path, archive, kind):
    options = ("--link",) if kind == "commit" else ()
    whole = short_path / "whole"
    whole.mkdir(mode=0o755)
    count = imported(whole, archive, *options, death=crash.Crash("none", 0))[kind]
    numbers = list(range(1, count + 1))
    if not IS_WHOLE:
        # The last ones are of the record.
        numbers = sorted({*numbers[:: max(1, count // SAMPLES)], *numbers[-2:]})
    fired = 0
    for number in numbers:
        base = short_path / f"{kind}-{number}"
        base.mkdir(mode=0o755)
        if imported(base, archive, *options, death=crash.Crash(kind, number)) is None:
            continue
        fired += 1
        imgvol = Imgvol(base)
        imgvol.start()
        found = {name for image in imgvol.json("images") for name in image["names"]}
        assert found in (set(), NAMES), number
        imgvol.run("gc")
        if not found:
            for place in ("layers", "places", "ingest"):
                assert os.listdir(imgvol.root / place) == []
        imgvol.run("import", archive)
        ids = {image["id"] for image in imgvol.json("images")}
        assert ids == {images.sha256(image.config_bytes()) for image in (ONE, TWO)}
        imgvol.terminate()
        assert not imgvol.unexpected_log()
    assert fired >= min(SAMPLES - 1, count)

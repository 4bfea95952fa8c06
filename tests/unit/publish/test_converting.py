"""Conversions that end early leave nothing; which files of which layer come first."""

import json
from pathlib import Path

import pytest
import trio

from imgvol.errors import Conflict, InvalidArgument, InvalidLayer
from imgvol.oci.digest import Digest
from imgvol.publish import conversion_work
from imgvol.publish.conversion import ConversionProgress, ConversionRequest
from imgvol.publish.converting import Converter
from imgvol.publish.prioritizing import assign
from imgvol.view.trace import Trace, TracedFile
from support.images import Image, Layer, file, write_layout
from support.members import directory, hardlink, symlink, view_of
from support.members import file as member
from support.pulling import open_service


@pytest.fixture
def image(tmp_path):
    layers = [Layer([file(f"f{number}", b"x" * number)], "gzip") for number in range(3)]
    write_layout(tmp_path / "layout", {"1": Image(layers), "empty": Image([])})
    return f"oci:{tmp_path}/layout:1"


def ask(image: str, tmp_path: Path, **more) -> ConversionRequest:
    return ConversionRequest(image=image, target=f"oci:{tmp_path}/out", format="estargz", **more)


async def convert(service, request, progress=None):
    converter = Converter(service.store, service.images, service.views)
    return await converter.convert(request, progress or ConversionProgress())


def check_nothing_left(service, tmp_path):
    assert list(Path(service.store.spool_directory).iterdir()) == []
    assert not (tmp_path / "out").exists()


async def test_giving_up_ends_the_helpers_and_leaves_nothing(image, tmp_path, monkeypatch):
    started, ended = [], []

    async def hang(kind, request, *, output_directory, **_):
        (output_directory / "blob").write_bytes(b"half")
        started.append(output_directory)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(output_directory)

    monkeypatch.setattr(conversion_work, "run_worker", hang)
    async with open_service(tmp_path / "store") as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(convert, service, ask(image, tmp_path))
            with trio.fail_after(20):
                while len(started) < 2:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert len(started) == 2, "two at a time"
        assert sorted(ended) == sorted(started)
        check_nothing_left(service, tmp_path)


async def test_the_first_layer_that_fails_ends_the_others(image, tmp_path, monkeypatch):
    started, ended = [], []

    async def fail_once(kind, request, *, output_directory, **_):
        started.append(output_directory.name)
        if len(started) == 2:
            raise InvalidLayer("bad tar archive")
        try:
            await trio.sleep_forever()
        finally:
            ended.append(output_directory.name)

    monkeypatch.setattr(conversion_work, "run_worker", fail_once)
    async with open_service(tmp_path / "store") as service:
        with trio.fail_after(20), pytest.raises(InvalidLayer):
            await convert(service, ask(image, tmp_path))
        assert ended == started[:1], "and those that wait never begin"
        check_nothing_left(service, tmp_path)


async def test_progress_reaches_the_end(image, tmp_path):
    progress = ConversionProgress()
    async with open_service(tmp_path / "store") as service:
        report = await convert(service, ask(image, tmp_path), progress)
        assert progress.stage == "write"
        assert len(progress.layers) == 3
        assert all(layer.done == layer.size > 1024 for layer in progress.layers)
        assert list(Path(service.store.spool_directory).iterdir()) == []
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    assert index["manifests"][0]["digest"] == str(report.digest)
    assert [layer.files for layer in report.images[0].layers] == [1, 1, 1]


async def test_what_makes_no_sense_is_refused_before_anything_is_made(image, tmp_path):
    async with open_service(tmp_path / "store") as service:
        for wrong, kind in (
            ({"format": "gzip"}, InvalidArgument),
            ({"target": "oci:relative"}, InvalidArgument),
            ({"target": "docker-archive:/x"}, InvalidArgument),
            ({"image": image.replace(":1", ":empty")}, Conflict),
        ):
            values = {"image": image, "target": f"oci:{tmp_path}/out", "format": "estargz"}
            with pytest.raises(kind):
                await convert(service, ConversionRequest(**(values | wrong)))
        check_nothing_left(service, tmp_path)


def trace(*files: tuple[bytes, int]) -> Trace:
    traced = tuple(TracedFile(path, size, 0, ()) for path, size in files)
    return Trace(Digest.of(b""), "linux/amd64", "", 0.0, traced)


def test_files_are_wanted_of_the_layer_that_shows_them():
    view = view_of(
        [
            directory(b"usr"),
            member(b"usr/old", 1),
            member(b"usr/kept", 2),
            member(b"usr/target", 3),
            symlink(b"bin", b"usr"),
        ],
        [member(b"usr/old", 5), hardlink(b"usr/name", b"usr/target"), hardlink(b"own", b"usr/old")],
    )
    found = assign(
        view,
        trace(
            (b"usr/name", 3),
            (b"usr/kept", 2),
            (b"bin/old", 5),
            (b"own", 5),
            (b"usr/old", 1),
            (b"usr", 0),
            (b"nothing", 1),
            (b"usr/kept/below", 1),
        ),
    )
    assert found.by_layer == {0: (b"usr/target", b"usr/kept"), 1: (b"usr/old", b"own")}
    assert (found.found, found.missing) == (4, 4)

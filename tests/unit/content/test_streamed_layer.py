"""Reads of a layer that is still being written."""

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.content.streamed_layer import StreamedLayer
from imgvol.errors import DigestMismatch
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT
from imgvol.oci.digest import Digest
from support.members import file

SMALL = b"0123456789"
LARGE = limits.LARGE_FILE


class Writer:
    """The storing thread, as far as a StreamedLayer knows it."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "files").mkdir()
        self.builder = IndexBuilder()
        self.changes = 0
        self.layer = StreamedLayer(Digest.of(b"layer"), trio.CapacityLimiter(4), self._note)
        self.layer.begin(self.builder, directory)

    def _note(self):
        self.changes += 1
        self.layer.wake()

    def add(self, member, content=None):
        number = self.builder.add(member)
        if number is not None:
            self.layer.expect(number, member)
            (self.directory / "files" / str(number)).write_bytes(content)
        return self.layer.index.child(ROOT, member.name)

    def write(self, data, position):
        (self.directory / "data").write_bytes(bytes(position) + data)
        self.layer.wrote(position + len(data))


async def collect(results, layer, *arguments):
    results.append(bytes(await layer.read(*arguments)))


async def test_a_read_waits_for_its_bytes_and_no_longer(tmp_path):
    writer = Writer(tmp_path)
    node = writer.add(file(b"a", 10, payload_offset=512))
    results = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, results, writer.layer, node, 2, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        writer.write(SMALL[:6], 512)
    assert results == [SMALL[2:6]]
    assert await writer.layer.read(node, 10, 5) == b""
    assert writer.changes


async def test_a_large_file_is_read_while_it_is_written(tmp_path):
    writer = Writer(tmp_path)
    content = bytes(LARGE - 1) + b"x"
    node = writer.add(file(b"a", LARGE, payload_offset=512), content)
    writer.layer.wrote(512 + 4096)
    assert await writer.layer.read(node, 0, 4096) == content[:4096]
    with trio.move_on_after(0.05) as waiting:
        await writer.layer.read(node, LARGE - 10, 10)
    assert waiting.cancelled_caught
    writer.layer.wrote(512 + LARGE)
    assert (await writer.layer.read(node, LARGE - 10, 100))[-1:] == b"x"


async def test_a_sparse_file_waits_for_all_of_it(tmp_path):
    writer = Writer(tmp_path)
    content = b"ab" + bytes(LARGE - 2)
    member = file(b"a", LARGE, payload_offset=512, sparse=((0, 1), (1, 1)))
    node = writer.add(member._replace(payload_size=2), content)
    writer.layer.wrote(513)
    with trio.move_on_after(0.05) as waiting:
        await writer.layer.read(node, 0, 1)
    assert waiting.cancelled_caught
    writer.layer.wrote(514)
    assert await writer.layer.read(node, 0, 3) == b"ab\0"


async def test_readers_are_handed_on_when_the_layer_was_published(tmp_path):
    class Whole:
        async def read(self, node, offset, size):
            return b"%d %d %d" % (node, offset, size)

    writer = Writer(tmp_path)
    node = writer.add(file(b"a", 10, payload_offset=512))
    results = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, results, writer.layer, node, 2, 4)
        await trio.testing.wait_all_tasks_blocked()
        writer.builder.finish()
        writer.layer.succeed(Whole(), writer.layer.grows.final_nodes())
    assert results == [b"1 2 4"]


async def test_files_that_have_gone_are_waited_for(tmp_path):
    """The writer's directory is renamed before anybody is told."""
    writer = Writer(tmp_path)
    node = writer.add(file(b"a", 10, payload_offset=512))
    writer.layer.wrote(1024)
    ends = []

    async def read():
        with pytest.raises(DigestMismatch):
            await writer.layer.read(node, 0, 10)
        ends.append("failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert ends == []
        writer.layer.failure = DigestMismatch("wrong")
    assert ends == ["failed"]
    with pytest.raises(DigestMismatch):
        writer.layer.read_now(node, 0, 1)
    assert not writer.layer.is_sound(node)

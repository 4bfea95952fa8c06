"""Finds the frames of a zstd blob while it passes, and makes runs of them, with a digest each.

Every frame is decoded, and so it is known, not believed, where it begins and ends and what it
gives: neither content sizes nor the seekable format's table at the end are asked. A run ends before
the frame that would make it larger than a span, so a span is no larger than was asked for unless
one frame alone is. What gives nothing, skippable frames and empty ones, is bridged where it is
short, and else ends the run before it.

What has no second frame, or a frame that no reader would hold at once, cannot be read from the
middle.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.lazy.frames import FrameRun, pack_runs
from imgvol.layers.zstd import ZstdDecoder

ONE_FRAME: Final = "one zstd frame: can only be read from its beginning; convert it"
LARGE_FRAME: Final = (
    f"a zstd frame of more than {limits.SPAN_SIZE // limits.MIB} MiB: "
    "can only be read from its beginning; convert it"
)

# Fetched in vain, at most, between two frames of a run: pzstd puts twelve bytes before each frame.
_BRIDGED: Final = 64 * limits.KIB


@dataclass(slots=True)
class _Run:
    """Frames so far, of which there is at least one with content."""

    start: int
    position: int
    end: int = 0
    plain: int = 0
    hasher: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)


class FrameBuilder:
    """Decodes a stream of zstd frames and keeps where they are. A `compression.Decoder`.

        builder = FrameBuilder(4 * limits.MIB)
        for piece in pieces:
            for plain in builder.feed(piece): ...
        builder.finish()
        write(builder.packed_runs, builder.digests)

    Args:
        span_size: Plain bytes of a span, at most, unless a single frame has more.

    Attributes:
        digests: The SHA-256 of the compressed bytes of each run.
    """

    def __init__(self, span_size: int) -> None:
        self.digests: list[bytes] = []
        self._span_size = span_size
        self._decoder = ZstdDecoder()
        self._runs: list[FrameRun] = []
        self._run: _Run | None = None
        # Behind the run: what gives nothing, and perhaps the start of a header.
        self._gap = bytearray()
        # The frame that is being decoded, where it starts, and what it has given.
        self._frame = bytearray()
        self._start = 0
        self._plain = 0
        self._frames = 0  # with content
        self._produced = 0

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next input. Exhaust the iterator before the next call.

        Raises:
            InvalidLayer, LimitExceeded: As ZstdDecoder; or there are more spans than a table has.
            Unsupported: A frame is too large for a span, or needs a dictionary.
        """
        view = memoryview(data)
        decoder = self._decoder
        while view:
            was_inside = bool(decoder.frame_header)
            used, output = decoder.step(view)
            is_inside = bool(decoder.frame_header)
            if was_inside:
                self._frame += view[:used]
                self._plain += len(output)
                if max(self._plain, len(self._frame)) > limits.SPAN_SIZE:
                    raise Unsupported(LARGE_FRAME)
            elif is_inside:
                self._begin_frame()
            else:
                self._pass_over(view[:used])
            if output:
                yield output
            if was_inside and not is_inside:
                self._end_frame()
            view = view[used:]

    def finish(self) -> None:
        """Say that the stream ends here.

        Raises:
            InvalidLayer: It ends inside a frame, or there is nothing in it.
            Unsupported: All of it is in one frame.
        """
        self._decoder.finish()
        self._close_run()
        if not self._frames:
            raise InvalidLayer("zstd data without content")
        if self._frames == 1:
            raise Unsupported(ONE_FRAME)

    @property
    def packed_runs(self) -> bytes:
        """The runs for a FrameTable, after `finish`."""
        return pack_runs(self._runs, self._produced)

    def _begin_frame(self) -> None:
        header = self._decoder.frame_header
        self._start = self._decoder.offset - len(header)
        self._frame = bytearray(header)
        self._plain = 0
        if self._run is not None:
            # A header that came in pieces was taken for what lies between, so far.
            del self._gap[self._start - self._run.end :]

    def _end_frame(self) -> None:
        if not self._plain:
            self._pass_over(self._frame)
            return
        end = self._decoder.offset
        run = self._run
        if run is not None and (
            run.plain + self._plain > self._span_size or end - run.start > limits.SPAN_SIZE
        ):
            self._close_run()
            run = None
        if run is None:
            run = self._run = _Run(start=self._start, position=self._produced)
        run.hasher.update(self._gap)
        run.hasher.update(self._frame)
        run.end = end
        run.plain += self._plain
        self._gap.clear()
        self._frame.clear()
        self._produced += self._plain
        self._frames += 1

    def _pass_over(self, data: bytes | bytearray | memoryview) -> None:
        """What gives nothing; before the first run and behind one that is closed it is nobody's."""
        if self._run is None:
            return
        self._gap += data
        if len(self._gap) > _BRIDGED:
            self._close_run()

    def _close_run(self) -> None:
        run, self._run = self._run, None
        self._gap.clear()
        if run is None:
            return
        if len(self._runs) == limits.ZTOC_SPANS:
            raise LimitExceeded(
                "layer with too many spans",
                hint="Choose larger spans: --span-size.",
                limit="ZTOC_SPANS",
                allowed=limits.ZTOC_SPANS,
            )
        self._runs.append(FrameRun(run.start, run.end, run.position))
        self.digests.append(run.hasher.digest())

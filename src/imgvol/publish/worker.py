"""Runs one heavy job in a helper process: compressing and parsing for minutes is not the daemon's.

The daemon's threads share one interpreter lock with the loop that answers the kernel; a process of
its own also has its own memory, a lower priority, and can be ended at any moment. `worker_main` is
the other side. What they say to each other:

    to it    the request, one line of JSON; then the bytes of the source, until the end
    from it  lines of JSON: {"progress": bytes so far}, last {"result": …} or {"error": …}

The helper gets no login and no connection: bytes come through the daemon's own readers. What it
makes are files in the directory that the caller gives, and removes if the job fails.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import trio

from imgvol import errors, limits
from imgvol.errors import ImgvolError, InternalError, LocalError
from imgvol.sources.base import BlobReader
from imgvol.threads import run_cancellable

_PROGRAM: Final = "imgvol.publish.worker_main"
# What a helper needs of our environment: where to find the package and its libraries. Logins,
# proxies and the like are none of its business.
_VARIABLES: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# Of what it has printed besides, when it fails without a word.
_LAST_WORDS: Final = 2 * limits.KIB


async def run_worker(
    kind: str,
    request: Mapping[str, Any],
    *,
    source: Callable[[], BlobReader] | None,
    output_directory: Path,
    progress: Callable[[int], None],
    limiter: trio.CapacityLimiter,
) -> dict[str, Any]:
    """Runs a job to its end; when cancelled, ends it and waits until it has gone.

    Args:
        kind: Which job, of `worker_main.JOBS`.
        request: What it is asked; JSON.
        source: Opens what it reads, in a thread; None: nothing.
        output_directory: Where its files go; the caller removes it, whatever happens.
        progress: Told how many bytes of the source the job has dealt with, in a thread.
        limiter: How many jobs may run at once.

    Returns:
        What the job says of its result.

    Raises:
        ImgvolError: What the job, or the source, has raised.
        LocalError: The helper cannot be started, or has died.
    """
    worker = _Worker(kind, dict(request), source, output_directory, progress)
    return await run_cancellable(worker.run, worker.cancel, limiter=limiter)


class _Worker:
    """One helper process, from its start to its end. `run` blocks, `cancel` ends it."""

    def __init__(
        self,
        kind: str,
        request: dict[str, Any],
        source: Callable[[], BlobReader] | None,
        output_directory: Path,
        progress: Callable[[int], None],
    ) -> None:
        self._kind = kind
        self._request = request
        self._source = source
        self._output_directory = output_directory
        self._progress = progress
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._reader: BlobReader | None = None
        self._has_answered = False
        # Names the process for as long as it is open, whoever else gets its number.
        self._handle: int | None = None
        self._feeding_failure: BaseException | None = None

    def cancel(self) -> None:
        """Ends `run` soon, from any thread."""
        with self._lock:
            self._is_cancelled = True
            if self._reader is not None:
                self._reader.cancel()
            self._kill()

    def _kill(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def run(self) -> dict[str, Any]:
        """Starts the helper, feeds it, and returns what it says."""
        with tempfile.TemporaryFile() as last_words, self._started(last_words) as process:
            feeder = threading.Thread(
                target=self._feed, args=[process.stdin], name="imgvol-feed", daemon=True
            )
            feeder.start()
            try:
                answer = self._listen(process)
            except BaseException:
                self.cancel()  # nobody listens any more
                raise
            finally:
                self._stop_source()
                feeder.join()
            return self._judge(answer, process.wait(), last_words)

    @contextlib.contextmanager
    def _started(self, last_words: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
        process = self._start(last_words)
        try:
            with process:
                yield process
        finally:
            with self._lock:
                assert self._handle is not None
                os.close(self._handle)
                self._handle = None

    def _start(self, last_words: IO[bytes]) -> "subprocess.Popen[bytes]":
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        command = [sys.executable, "-P", "-m", _PROGRAM, self._kind]
        with self._lock:
            if self._is_cancelled:
                raise InternalError("a job was cancelled", kind=self._kind)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=last_words,
                    cwd=self._output_directory,
                    env=environment,
                    start_new_session=True,
                )
                self._handle = os.pidfd_open(process.pid)
            except OSError as exc:
                raise LocalError(f"cannot start a helper process: {exc.strerror}") from exc
            return process

    def _feed(self, stream: IO[bytes]) -> None:
        """The feeding thread: the request and the source, to the helper's standard input."""
        try:
            with stream:
                request = {"parent": os.getpid(), "request": self._request}
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                for piece in self._pieces():
                    stream.write(piece)
        except BrokenPipeError:
            pass  # it has ended, and says why itself
        except BaseException as exc:  # noqa: BLE001 - handed to `run`
            with self._lock:
                if not self._has_answered:
                    self._feeding_failure = exc
                    self._kill()

    def _pieces(self) -> Iterator[bytes]:
        if self._source is None:
            return
        with self._source() as reader:
            with self._lock:
                self._reader = reader
                if self._is_cancelled:
                    reader.cancel()
            try:
                yield from reader.iter_pieces()
            finally:
                with self._lock:
                    self._reader = None

    def _stop_source(self) -> None:
        """The helper reads no more: nor need the source be read."""
        with self._lock:
            self._has_answered = True
            if self._reader is not None:
                self._reader.cancel()

    def _listen(self, process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
        """Its last word; None when it has ended without one."""
        assert process.stdout is not None
        answer: dict[str, Any] | None = None
        while line := process.stdout.readline(limits.WORKER_LINE_SIZE):
            if answer is not None:
                raise InternalError("a helper process goes on talking", kind=self._kind)
            message = _parse_line(line, self._kind)
            if "progress" in message:
                self._progress(int(message["progress"]))
            else:
                answer = message
        try:
            process.wait(limits.WORKER_END)  # its output is closed
        except subprocess.TimeoutExpired:
            with self._lock:
                self._kill()
        return answer

    def _judge(
        self, answer: dict[str, Any] | None, status: int, last_words: IO[bytes]
    ) -> dict[str, Any]:
        if self._feeding_failure is not None:
            raise self._feeding_failure
        if answer is not None and "error" in answer:
            raise _rebuild(answer["error"])
        if answer is not None and status == 0:
            result = answer.get("result")
            if isinstance(result, dict):
                return result
        if status < 0:
            raise LocalError(
                "a helper process was ended",
                hint="Look at the kernel's log: it may have been short of memory.",
                kind=self._kind,
                signal=-status,
            )
        end = max(0, last_words.seek(0, os.SEEK_END) - _LAST_WORDS)
        last_words.seek(end)
        said = last_words.read(_LAST_WORDS).decode("utf-8", "replace").strip()
        raise InternalError(
            "a helper process has failed", kind=self._kind, status=status, said=said or None
        )


def _parse_line(line: bytes, kind: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise InternalError("a helper process talks nonsense", kind=kind) from error
    if not isinstance(message, dict) or not line.endswith(b"\n"):
        raise InternalError("a helper process talks nonsense", kind=kind)
    return message


def _rebuild(document: Mapping[str, Any]) -> ImgvolError:
    """The error that a helper has told of; see `worker_main.describe`."""
    kind = getattr(errors, str(document.get("class")), InternalError)
    if not (isinstance(kind, type) and issubclass(kind, ImgvolError)):
        kind = InternalError
    fields = {str(name): value for name, value in dict(document.get("fields", {})).items()}
    make: Callable[..., ImgvolError] = partial(kind, str(document.get("message", "")))
    return make(hint=str(document.get("hint", "")), **fields)

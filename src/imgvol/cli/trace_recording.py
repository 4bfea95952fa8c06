"""Recording a trace from the command line: the stream behind it, and the command that is traced."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from imgvol.cli.client import Client
from imgvol.errors import ImgvolError, InternalError, MachineLacks

# Where --host tells a command that the image is.
VIEW_VARIABLE: Final = "IMGVOL_VIEW"


class Recorder:
    """One recording: a request whose answer lasts as long as it does, read by a thread.

    Args:
        client: Of the daemon.
        volume: What is recorded.
        seconds: How long at most; None: until `finish`.

    Attributes:
        progress: The latest word of the daemon.
    """

    def __init__(self, client: Client, volume: str, seconds: float | None = None) -> None:
        self.progress: dict[str, Any] = {}
        self._client = client
        self._body = {"volume": volume, "seconds": seconds}
        self._changed = threading.Condition()
        self._trace: dict[str, Any] | None = None
        self._error: ImgvolError | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Returns once reads are noted.

        Raises:
            ImgvolError: The daemon refuses.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self.progress.get("is_recording"))
            if self._error is not None:
                raise self._error

    def finish(self) -> None:
        """Ends the recording, and keeps it; it may have ended by itself."""
        with contextlib.suppress(ImgvolError):
            body = {"recording": self.progress["recording"]}
            self._client.call("POST", "/traces/finish", body=body)

    def wait(self) -> dict[str, Any]:
        """The summary of the trace, once it has ended.

        Raises:
            ImgvolError: Nothing is kept of it.
        """
        while self._thread.is_alive():
            self._thread.join(0.1)  # so that signals are handled meanwhile
        if self._error is not None:
            raise self._error
        if self._trace is None:
            raise InternalError("a recording ended without a trace")
        return self._trace

    def _follow(self) -> None:
        try:
            for event in self._client.iter_events("POST", "/traces/record", body=self._body):
                with self._changed:
                    if event["event"] == "done":
                        self._trace = event["trace"]
                    else:
                        self.progress = event
                    self._changed.notify_all()
        except ImgvolError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - told by whoever waits
            self._error = InternalError("a recording failed", kind=type(error).__name__)
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()


@contextlib.contextmanager
def interrupt_ends(recorder: Recorder) -> Iterator[None]:
    """Inside the block Ctrl-C ends the recording early, and keeps it."""

    def end(_number: int, _frame: FrameType | None) -> None:
        recorder.finish()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_in_view(view: str, command: Sequence[str], config: Mapping[str, Any]) -> int:
    """Runs a command with a view as its root; returns its exit code.

    Args:
        view: Path of the view.
        command: Words.
        config: The image's.
    """
    from imgvol.volumes.private_root import command_line

    run = config.get("config") or {}
    line = command_line(view, command, run.get("Env") or [], run.get("WorkingDir") or "")
    return _run(line, dict(os.environ))


def run_on_host(view: str, command: Sequence[str]) -> int:
    """Runs a command as it is, told where the image is; returns its exit code."""
    return _run(list(command), {**os.environ, VIEW_VARIABLE: view})


def require_root() -> None:
    """Refuses what needs root, and says what does not.

    Raises:
        MachineLacks: This user is not root.
    """
    if os.geteuid() != 0:
        raise MachineLacks(
            "only root can run a command with the image as its root",
            hint=f"With --host the command runs on this machine, and finds the image's files in "
            f"${VIEW_VARIABLE}. Or record what you have mounted: --volume ID --for 30s.",
        )


def _run(line: Sequence[str], environment: Mapping[str, str]) -> int:
    # Ctrl-C is the command's: what it has read until then is kept. A handler that does nothing is
    # not inherited, as ignoring would be.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        code = subprocess.run(line, env=environment, check=False).returncode
    except FileNotFoundError as exc:
        raise MachineLacks("the command is not on this machine", command=line[0]) from exc
    except OSError as exc:
        raise MachineLacks(f"the command cannot be run: {exc.strerror}", command=line[0]) from exc
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code

"""Who waits for a reply, and which signals wait for them: /proc/TID/status, proc_pid_status(5).

The kernel tells that a caller was sent a signal, and not which one. Many mean nothing to it: it is
stopped and continued, a debugger looks at it, its control group is frozen. It must not see an error
for that.
"""

import signal
from typing import Final, NamedTuple

_KILLED: Final = 1 << signal.SIGKILL - 1
# What ends a process that has no handler, with a core dump (signal(7)). Of all else that does, the
# kernel makes a SIGKILL for each of its threads (kernel/signal.c, complete_signal).
_CORE_SIGNALS: Final = (
    *(signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS),
    *(signal.SIGFPE, signal.SIGSEGV, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSYS),
)
_CORE: Final = sum(1 << number - 1 for number in _CORE_SIGNALS)


class Caller(NamedTuple):
    """The task behind a request.

    Attributes:
        tid: Its number, as the header of a request has it; 0: it is outside of our PID namespace.
        is_direct: It reads past the page cache, and not a page that it may have mapped: an error
            for such a page would be SIGBUS, whatever the signal was.
    """

    tid: int
    is_direct: bool

    def may_leave(self) -> bool:
        """Whether it waits for us only to be able to end, or to run a handler of a signal.

        One that cannot be seen may not.
        """
        try:
            with open(f"/proc/{self.tid}/status", "rb") as status:
                return self.may_leave_by(status.read())
        except OSError:
            return False

    def may_leave_by(self, status: bytes) -> bool:
        """The same, from the text of /proc/TID/status."""
        sets = {}
        for line in status.splitlines():
            name, _, value = line.partition(b":")
            if name in {b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt"}:
                sets[name] = int(value, 16)
        pending = sets.get(b"SigPnd", 0)
        if pending & _KILLED:
            return True
        pending |= sets.get(b"ShdPnd", 0)
        pending &= ~sets.get(b"SigBlk", 0) & ~sets.get(b"SigIgn", 0)
        return self.is_direct and bool(pending & (sets.get(b"SigCgt", 0) | _CORE))

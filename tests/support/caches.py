"""What the kernel remembers of files, everybody's."""

import os

PAGES, PAGES_AND_NAMES = "1", "3"


def drop_caches(what: str = PAGES) -> None:
    """Lets the kernel forget what it has read, on the whole machine.

    Others count what the kernel asks for anew: a test that calls this is marked `alone`. `forget`
    of support/agent.py does it to one file.
    """
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) - 1
    assert not beside, "whoever drops the kernel's caches is marked `alone`: others run beside this"
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write(what)

"""A helper process with jobs for tests: `worker` is told to start this module."""

import os
import sys
import time

from imgvol.errors import DigestMismatch
from imgvol.publish import worker_main


def run(request, source, output, progress):
    match request["do"]:
        case "count":
            size = 0
            while piece := source.read(65536):
                size += len(piece)
                progress(size)
            (output / "made").write_text(str(size))
            environment = sorted(os.environ)
            descriptors = sorted(
                os.readlink(f"/proc/self/fd/{n}")
                for n in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{n}")
            )
            return {
                "size": size,
                "nice": os.nice(0),
                "environment": environment,
                "pipes": len([d for d in descriptors if d.startswith("pipe:")]),
                "descriptors": descriptors,
                "pid": os.getpid(),
            }
        case "refuse":
            raise DigestMismatch("not it", hint="Try another.", offset=7, path=b"a\xff")
        case "defect":
            raise ZeroDivisionError("by zero")
        case "full":
            raise OSError(28, "No space left on device")
        case "die":
            os.kill(os.getpid(), 9)
        case "exit":
            print("these were my last words", file=sys.stderr)
            os._exit(3)
        case "babble":
            print("x" * 100, flush=True)
        case "hang":
            (output / "pid").write_text(str(os.getpid()))
            (output / "pid").rename(output / "ready")
            time.sleep(600)
    return {}


worker_main.JOBS = {"test": __name__} if __name__ != "__main__" else {"test": "support.worker_jobs"}

if __name__ == "__main__":
    sys.exit(worker_main.main(sys.argv[1:]))

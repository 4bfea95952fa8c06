"""`python -m imgvol.supervisor RUN READY_FD COMMAND...`; by `launch.become_supervisor` only."""

import os
import sys

from imgvol.supervisor.loop import Supervisor

if __name__ == "__main__":
    run, ready, *command = sys.argv[1:]
    supervisor = Supervisor(run, command, dict(os.environ), stands_by=True)
    sys.exit(supervisor.run(None if ready == "-" else int(ready)))

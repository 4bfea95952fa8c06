"""Many readers of some trees, as a process of its own, that never stop and never trust a cache.

    with Readers([view, target], FILES, readers=20) as readers:
        ...
    assert readers.stop() == []

Each reader lists every directory, reads every file, by its path and by a descriptor that it opened
at the beginning, and compares all with what there has to be.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from support.programs import wait_until


class Readers:
    """The test's side.

    Args:
        roots: Directories with the same files.
        files: What each file holds, by its path below.
        readers: How many there are, each at one of the roots.
        within: A command that runs them somewhere else: `nsenter` and its options.
    """

    def __init__(
        self,
        roots: Sequence[str],
        files: Mapping[str, bytes],
        readers: int,
        *,
        within: Sequence[str] = (),
    ) -> None:
        wanted = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        self._count = readers
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "support.readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
        )
        self._ask({"roots": list(roots), "files": wanted, "readers": readers})
        self.wait_rounds()

    def _ask(self, question: object) -> dict:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def rounds(self) -> list[int]:
        """How often each reader has read everything."""
        return self._ask("rounds")["rounds"]

    def wait_rounds(self, more: int = 1) -> None:
        """Until every reader has read everything so many times from now on."""
        before = self.rounds()
        wait_until(
            lambda: all(n >= b + more for n, b in zip(self.rounds(), before, strict=True)),
            seconds=60,
            what="every reader goes on",
        )

    def stop(self) -> list[str]:
        """Ends all readers; what went wrong for any of them."""
        return self._ask("stop")["failures"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait(10)
        self._process.stdin.close()
        self._process.stdout.close()


# --- the readers' side ---------------------------------------------------------------------------


class Reader(threading.Thread):
    def __init__(self, root: str, files: Mapping[str, str], is_over: threading.Event) -> None:
        super().__init__()
        self.rounds = 0
        self.failures: list[str] = []
        self._root = root
        self._files = files
        self._is_over = is_over
        self._names: dict[str, set[str]] = {"": set()}
        for path in files:
            for parent, name in itertools.pairwise(["", *ancestry(path)]):
                self._names.setdefault(parent, set()).add(os.path.basename(name))
        self._held = {path: os.open(os.path.join(root, path), os.O_RDONLY) for path in files}

    def run(self) -> None:
        while not self._is_over.is_set():
            for directory, names in self._names.items():
                self._note(directory, self._list, sorted(names))
            for path, digest in self._files.items():
                self._note(path, self._read_path, digest)
                self._note(f"held {path}", lambda _: digest_of(self._held[path]), digest)  # noqa: B023 - called at once
            self.rounds += 1

    def _note(self, what, do, wanted) -> None:
        try:
            found = do(what)
        except OSError as error:
            self.failures.append(f"{self._root} {what}: {error}")
        else:
            if found != wanted:
                self.failures.append(f"{self._root} {what}: {found!r} and not {wanted!r}")

    def _list(self, directory: str) -> list[str]:
        descriptor = os.open(os.path.join(self._root, directory), os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Listings are cached as the pages of files are.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def _read_path(self, path: str) -> str:
        descriptor = os.open(os.path.join(self._root, path), os.O_RDONLY)
        try:
            return digest_of(descriptor)
        finally:
            os.close(descriptor)


def ancestry(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def digest_of(descriptor: int) -> str:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    size, digest, offset = os.fstat(descriptor).st_size, hashlib.sha256(), 0
    while offset < size:
        data = os.pread(descriptor, 128 * 1024, offset)
        if not data:
            return f"{offset} bytes of {size}"
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()


def main() -> None:
    task = json.loads(sys.stdin.readline())
    is_over = threading.Event()
    roots = itertools.islice(itertools.cycle(task["roots"]), task["readers"])
    readers = [Reader(root, task["files"], is_over) for root in roots]
    for reader in readers:
        reader.start()
    print("{}", flush=True)
    for line in sys.stdin:
        if json.loads(line) == "rounds":
            print(json.dumps({"rounds": [reader.rounds for reader in readers]}), flush=True)
            continue
        is_over.set()
        for reader in readers:
            reader.join()
        failures = [failure for reader in readers for failure in reader.failures]
        print(json.dumps({"failures": failures[:20]}), flush=True)


if __name__ == "__main__":
    main()

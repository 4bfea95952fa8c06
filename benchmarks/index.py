"""The helper process that makes an index, alone: MB of tar per second of its CPU time.

Two layers as gzip -6: Debian, whose files are small, and numpy with scipy, whose files are large.
Each round indexes both by this tree and, if there is one to compare with, by another, in turns: on
a machine with other work only figures of the same run tell anything, and of those the best. The
zTOCs of both must be the same. START is an interpreter with its modules, before the first byte; the
modules are compiled before, as those of an installed package are.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazy import PACKAGES, packages_tar

from support import rootfs
from support.images import Layer

SOURCE = Path(__file__).resolve().parents[1] / "src"
SPAN_SIZE = 4 << 20


def bench_index(rounds: int, against: Path | None = None) -> None:
    """Prints a table.

    Args:
        rounds: How often each layer is indexed by each tree.
        against: The directory of another `imgvol` package, to compare with.
    """
    layers = {
        "Debian": rootfs.read_image(rootfs.ensure_layout()).layers[0].recompressed("gzip"),
        "science": Layer(packages_tar("science", PACKAGES)),
    }
    trees = {"this tree": SOURCE} | ({"against": against.resolve()} if against else {})
    nothing = Layer(bytes(1024))
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    made: defaultdict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as compiled:
        for source in trees.values():
            _index(nothing, source, compiled)
        for _ in range(rounds):
            for tree, source in trees.items():
                times["start", tree].append(_index(nothing, source, compiled)[0])
            for name, layer in layers.items():
                for tree, source in trees.items():
                    spent, result = _index(layer, source, compiled)
                    times[name, tree].append(spent)
                    made[name].add(result["ztoc"]["digest"])
    print(f"{'LAYER':<10}{'BY':<12}{'TAR':>10}{'CPU':>9}{'START':>9}{'SPEED':>12}{'BUT START':>12}")
    for name, layer in layers.items():
        for tree in trees:
            spent, start = min(times[name, tree]), min(times["start", tree])
            size = len(layer.tar) / 1e6
            print(
                f"{name:<10}{tree:<12}{size:>7.1f} MB{spent:>7.2f} s{start:>7.2f} s"
                f"{size / spent:>7.0f} MB/s{size / (spent - start):>7.0f} MB/s"
            )
        if against:
            ratio = min(times[name, "against"]) / min(times[name, "this tree"])
            same = "the same zTOC" if len(made[name]) == 1 else "ANOTHER zTOC"
            print(f"{name:<10}{ratio:.2f} times as fast, {same}")


def _index(layer: Layer, source: Path, compiled: str) -> tuple[float, Mapping[str, Any]]:
    """Seconds of CPU time that a helper took for a layer, and its answer."""
    request = {
        "digest": layer.digest,
        "size": layer.size,
        "diff_id": layer.diff_id,
        "span_size": SPAN_SIZE,
    }
    line = json.dumps({"parent": os.getpid(), "request": request}) + "\n"
    with tempfile.TemporaryDirectory() as output, tempfile.TemporaryFile() as answers:
        helper = subprocess.Popen(
            [sys.executable, "-P", "-m", "imgvol.publish.worker_main", "index"],
            stdin=subprocess.PIPE,
            stdout=answers,
            cwd=output,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(source),
                "PYTHONPYCACHEPREFIX": compiled,
            },
        )
        assert helper.stdin is not None
        helper.stdin.write(line.encode() + layer.blob)
        helper.stdin.close()
        _, status, usage = os.wait4(helper.pid, 0)
        helper.returncode = os.waitstatus_to_exitcode(status)
        answers.seek(0)
        last = json.loads(answers.read().splitlines()[-1])
    if "result" not in last:
        raise RuntimeError(f"the helper failed: {last}")
    return usage.ru_utime + usage.ru_stime, last["result"]

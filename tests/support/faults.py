"""A pytest plugin for the table of faults: which tests show which rows, and how many rows pass.

A test says with `@pytest.mark.fault("F21")` that it shows what imgvol does about that fault. The
table, docs/faults.md, says for each row which tests these are, or why there is none; the two are
compared by tests/unit/test_faults_table.py. At the end of a run a line tells how many rows it has
shown: a row counts when at least one of its tests has run and none of those that ran has failed.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
NOT_APPLICABLE = "not applicable"
OPEN = "open"
# Names the file with what the runs before this one have shown.
EARLIER_RUNS = "IMGVOL_TEST_FAULTS"
_TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        fault: What goes wrong.
        answer: What imgvol does.
        shown_by: The tests, or why there are none.
    """

    id: str
    fault: str
    answer: str
    shown_by: str

    @property
    def tests(self) -> frozenset[str]:
        """Paths and names of the tests that show it."""
        return frozenset(_TEST.findall(self.shown_by))

    @property
    def verdict(self) -> str:
        """How the last column begins, where it names no test: a reason follows a colon."""
        return self.shown_by.partition(":")[0]


def read_table(text: str) -> Iterator[Row]:
    """The rows of every table in the text whose first column is a fault's ID."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| F") and len(cells) == 4:
            yield Row(*cells)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "fault(*ids): shows what imgvol does about these faults (docs/faults.md)"
    )
    config.pluginmanager.register(_Tally(), "imgvol-faults")


class _Tally:
    """Sums up, over a run, what became of the tests of each row.

    Rows go with the reports, as the tests may run in other processes; where several runs make up
    one, what the first ones showed is in a file for the last.
    """

    def __init__(self) -> None:
        self._file = Path(os.environ.get(EARLIER_RUNS, os.devnull))
        earlier = json.loads(self._file.read_text() or "{}")
        self._passed = set(earlier.get("passed", ()))
        self._failed = set(earlier.get("failed", ()))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        rows = [row for mark in item.iter_markers("fault") for row in mark.args]
        report.user_properties += [("fault", row) for row in rows]
        return report

    def pytest_runtest_logreport(self, report):
        rows = {value for name, value in report.user_properties if name == "fault"}
        if report.failed:
            self._failed |= rows
        elif report.when == "call" and report.passed:
            self._passed |= rows

    def pytest_terminal_summary(self, terminalreporter):
        if self._passed or self._failed:
            terminalreporter.line(summary(self._passed, self._failed, TABLE.read_text()))
            found = {"passed": sorted(self._passed), "failed": sorted(self._failed)}
            self._file.write_text(json.dumps(found))


def summary(passed: set[str], failed: set[str], table: str) -> str:
    """One line for the end of a run."""
    rows = list(read_table(table))
    shown = {row.id for row in rows} & (passed - failed)
    verdicts = [row.verdict for row in rows if not row.tests]
    line = f"faults: {len(shown)} of {len(rows)} rows shown"
    line += f", {verdicts.count(NOT_APPLICABLE)} not applicable, {verdicts.count(OPEN)} open"
    return line + (f"; FAILED: {', '.join(sorted(failed))}" if failed else "")

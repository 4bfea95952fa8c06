"""The table of faults and the marks of the tests say the same."""

import ast
from pathlib import Path

from support.faults import NOT_APPLICABLE, OPEN, TABLE, read_table, summary

ROOT = Path(__file__).parents[2]
WANTED = [
    *(f"F{number:02}" for number in range(1, 20)),
    *(f"F{number}" for number in range(20, 34)),
    *(f"F{number}" for number in range(70, 89)),
    *(f"F{number}" for number in range(90, 99)),
]
ROWS = {row.id: row for row in read_table(TABLE.read_text())}


def marked_tests():
    """Which faults each test of the sources is marked with."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        of_module = {
            fault
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
            for fault in faults_in(node.value)
        }
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                faults = {fault for mark in node.decorator_list for fault in faults_in(mark)}
                if node.name.startswith("test_") and faults | of_module:
                    found[f"{path.relative_to(ROOT)}::{node.name}"] = faults | of_module
    return found


def faults_in(expression):
    """The arguments of every `pytest.mark.fault(...)` in an expression."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (argument.value for argument in node.args)


def test_every_fault_has_one_row():
    ids = [row.id for row in read_table(TABLE.read_text())]
    assert ids == WANTED


def test_every_row_is_shown_or_says_why_not():
    for row in ROWS.values():
        assert row.fault, row.id
        if row.tests:
            assert row.answer, row.id
        else:
            verdict, _, reason = row.shown_by.partition(": ")
            assert verdict in {NOT_APPLICABLE, OPEN}, row.id
            assert reason, row.id


def test_table_and_marks_agree():
    by_marks = {(fault, test) for test, faults in marked_tests().items() for fault in faults}
    by_table = {(row.id, test) for row in ROWS.values() for test in row.tests}
    assert by_marks - by_table == set(), "marked, and not in the table"
    assert by_table - by_marks == set(), "in the table, and not marked"


def test_the_line_at_the_end_counts_rows():
    table = (
        "| F01 | a | b | `tests/x.py::test_a` |\n"
        "| F02 | a | b | `tests/x.py::test_b` |\n"
        "| F03 | a | | not applicable: no |\n"
        "| F04 | a | | open: not yet |\n"
    )
    line = summary({"F01", "F02"}, {"F02"}, table)
    assert line == "faults: 1 of 4 rows shown, 1 not applicable, 1 open; FAILED: F02"

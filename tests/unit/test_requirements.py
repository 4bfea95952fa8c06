"""docs/requirements.md has an answer for every row, and what it names exists."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WANTED = [
    *(f"S0.{number}" for number in range(1, 25)),
    *(f"S1.{number}" for number in range(1, 32)),
    *(f"S2.{number}" for number in range(1, 43)),
    *(f"S3.{number}" for number in range(1, 30)),
    *(f"K{number}" for number in range(1, 28)),
    *(f"C{number}" for number in range(1, 17)),
    *(f"O{number}" for number in range(1, 17)),
    *(f"S4.{number}" for number in range(1, 36)),
]
EXCUSES = ("not applicable: ", "open: ")


def rows():
    for line in (ROOT / "docs/requirements.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "id":
            yield cells


ROWS = {cells[0]: cells[1:] for cells in rows()}


@functools.cache
def definitions(path):
    """Every class, function and method of a source, by its qualified name."""
    found = set()

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse((ROOT / path).read_text()), "")
    return found


def exists(place):
    path, _, name = place.partition("::")
    return (ROOT / path).is_file() and name in definitions(path)


def test_every_requirement_has_one_row():
    assert [cells[0] for cells in rows()] == WANTED


@pytest.mark.parametrize("row", WANTED)
def test_a_row_has_an_answer_that_exists(row):
    requirement, where, shown_by = ROWS[row]
    assert requirement
    if where.startswith(EXCUSES):
        assert shown_by == ""
        assert len(where.partition(": ")[2]) > 10
        return
    places, tests = re.findall(r"`([^`]+)`", where), re.findall(r"`([^`]+)`", shown_by)
    assert places
    assert tests
    for place in places:
        assert place.startswith("src/imgvol/")
        assert exists(place), place
    for test in tests:
        assert test.startswith("tests/")
        assert test.partition("::")[2].startswith("test_")
        assert exists(test), test


def test_what_does_not_exist_is_noticed():
    assert exists("tests/unit/test_requirements.py::exists")
    assert not exists("tests/unit/test_requirements.py::absent")
    assert not exists("tests/unit/absent.py::exists")

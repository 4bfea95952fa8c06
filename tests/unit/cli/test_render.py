"""Tables and messages."""

from imgvol.cli.names import familiar
from imgvol.cli.pulling import stats_lines
from imgvol.cli.render import Column, error_lines, table_lines
from imgvol.errors import DaemonUnavailable, NotFound

COLUMNS = [Column("NAME", shrinks=True), Column("SIZE", is_number=True)]


def test_columns_are_aligned_and_lines_have_no_trailing_blanks():
    lines = table_lines(COLUMNS, [["a", "1 B"], ["longer", "1234 B"]])
    assert lines == ["NAME      SIZE", "a          1 B", "longer  1234 B"]


def test_cells_cannot_break_the_table_or_steer_the_terminal():
    lines = table_lines(COLUMNS, [["a\nb\x1b[2J", "1"]])
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_wide_cells_align():
    lines = table_lines(COLUMNS, [["日本", "1"], ["abcd", "2"]])
    assert lines[1:] == ["日本     1", "abcd     2"]


def test_a_narrow_terminal_shortens_what_may_shrink():
    lines = table_lines(COLUMNS, [["x" * 100, "1 B"]], width=40)
    assert max(len(line) for line in lines) == 40
    assert "…" in lines[1]
    assert lines[1].endswith("1 B")


def test_errors_say_what_to_do_and_are_harmless():
    error = NotFound("no \x1b[31mimage", hint="Pull\x07 it.", name="x\ny")
    assert error_lines(error) == ["imgvol: no \\033[31mimage (name x\\x0ay)", "  Pull\\a it."]
    assert error_lines(DaemonUnavailable("gone"))[1] == "  Trying again may help."


def test_familiar_names():
    assert familiar("docker.io/library/alpine:3") == "alpine:3"
    assert familiar("docker.io/grafana/loki:2") == "grafana/loki:2"
    assert familiar("quay.io/a/b:1") == "quay.io/a/b:1"
    assert familiar("docker.io/a.b/c:1") == "docker.io/a.b/c:1"


def test_stats_pair_times_with_amounts():
    stats = {
        "resolve_seconds": 0.5,
        "receive_seconds": 2.0,
        "received_bytes": 10_000_000,
        "total_seconds": 3.0,
        "write_seconds": 1.0,
        "write_bytes": 5_000_000,
        "entries": 1234,
    }
    rows = [line.split() for line in stats_lines(stats)]
    assert rows[1] == ["resolve", "500", "ms"]
    assert rows[2] == ["receive", "2.0", "s", "10.0", "MB", "5.0", "MB/s"]
    assert rows[3] == ["write", "1.0", "s", "5.0", "MB", "5.0", "MB/s"]
    assert rows[4] == ["total", "3.0", "s"]
    assert rows[5:] == [["received", "10.0", "MB"], ["entries", "1,234"]]


def test_stats_with_no_time_do_not_divide_by_it():
    assert stats_lines({"receive_seconds": 0.0, "received_bytes": 5})

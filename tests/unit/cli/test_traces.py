"""What a trace looks like, and what the commands say."""

import json
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from fuzz import seeds
from imgvol.cli import trace_svg
from imgvol.cli.main import cli
from imgvol.cli.trace_timeline import summary, timeline
from imgvol.oci.digest import Digest
from imgvol.view.trace import Trace, TracedFile, TracedRange

SVG = "{http://www.w3.org/2000/svg}"


def a_trace(files=(), *, name="docker.io/library/x:1"):
    return Trace(Digest.of(b"m"), "linux/amd64", name, 2.0, tuple(files))


FILES = (
    TracedFile(b"usr/bin/x", 100_000, 0, (TracedRange(0, 50_000, 0), TracedRange(90_000, 10, 999))),
    TracedFile(b'etc/\x1b[31m\n<&"\xff', 10, 500, (TracedRange(0, 10, 500),)),
    TracedFile(b"etc/opened", 10, 900, ()),
)


def test_a_timeline_has_a_line_for_each_file_that_fits():
    lines = timeline(a_trace(FILES), width=80)
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    first = lines[1].split()
    assert (first[0], first[1:3], first[-1]) == ("0", ["us", "50.0"], "usr/bin/x")
    bar = next(word for word in first if "█" in word)
    assert (bar[0], bar[-1]) == ("█", "█")
    assert "\\033[31m\\n" in lines[2]
    assert "opened" in lines[3]
    assert "▏" in lines[3]


@pytest.mark.parametrize("width", [20, 40, 79, 200, None])
def test_a_timeline_can_be_drawn_at_any_width_and_in_ascii(width):
    long = TracedFile(b"x/" * 1000 + b"x", 1, 0, (TracedRange(0, 1, 86_400_000),))
    lines = timeline(a_trace((long,)), width=width, is_ascii=True)
    assert lines[1].split()[-1].endswith("x")
    assert "#" in lines[1]
    assert not {"█", "▏", "·"} & set(lines[1])


def test_nothing_and_instants_can_be_drawn_too():
    assert len(timeline(a_trace(), width=80)) == 1
    assert summary(a_trace(FILES)).startswith("3 files, 50.0/100.0 kB read")
    for files in ((), FILES[2:], FILES[:1]):
        ET.fromstring(trace_svg.svg(a_trace(files)))


def test_the_picture_is_well_formed_and_tells_what_it_shows():
    root = ET.fromstring(trace_svg.svg(a_trace(FILES)))
    assert root.get("role") == "img"
    title, about = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
    assert "x:1" in title.text
    assert "3 files" in about.text
    rows = root.findall(f"{SVG}g")
    assert [row.find(f"{SVG}title").text.split(":")[0] for row in rows] == [
        "usr/bin/x",
        'etc/\\033[31m\\n<&"\\377',
        "etc/opened",
    ]
    marks = rows[0].findall(f"{SVG}rect")
    assert len(marks) == 2
    assert float(marks[0].get("width")) > float(marks[1].get("width"))
    assert float(marks[0].get("x")) < float(marks[1].get("x"))
    text = trace_svg.svg(a_trace(FILES))
    # Of its own: nothing is fetched when it is looked at.
    assert "href" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_picture_of_too_many_files_says_so():
    files = [TracedFile(b"%d" % n, 1, n, ()) for n in range(1000)]
    text = trace_svg.svg(a_trace(files))
    assert "and 600 files more" in text
    assert len(ET.fromstring(text).findall(f"{SVG}g")) == 400


# --- commands -------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["trace", *arguments], catch_exceptions=True)


def test_a_file_is_shown_without_a_daemon(tmp_path):
    path = tmp_path / "trace.json"
    path.write_bytes(seeds.traces()[0])
    shown = run("show", str(path))
    assert shown.exit_code == 0
    assert "2 files" in shown.output
    assert "usr/bin/a\\n\\377" in shown.output
    assert json.loads(run("show", str(path), "--json").output)["version"] == 1
    assert run("show", str(path), "-q").output.splitlines()[1] == "lib/x.so"
    picture = tmp_path / "trace.svg"
    assert run("show", str(path), "--svg", str(picture)).output == ""
    ET.parse(picture)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("record",), "name an image"),
        (("record", "x:1"), "name an image and, behind --, the command"),
        (("record", "x:1", "--for", "3s", "--", "true"), "--for is for --volume"),
        (("record", "--volume", "/mnt", "x:1"), "not both"),
        (("record", "--volume", "/mnt", "--for", "never"), "no duration"),
        (("record", "--volume", "/mnt", "--for", "2d"), "a day is the longest"),
    ],
)
def test_misuse_is_told(arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_without_root_one_is_told_what_is_possible(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    done = run("record", "x:1", "--", "true")
    assert "--host" in done.exception.hint
    assert "--volume" in done.exception.hint

"""The bars of a pull."""

import io
import signal

import pytest
from rich.console import Console

from imgvol.cli.progress import Bars, RateMeter, Silent, open_reporter


def layer(number, state, received=0, size=50_000_000):
    digest = f"sha256:{number:02x}" + "ab" * 31
    return {"digest": digest, "size": size, "state": state, "received": received}


def drawn(bars, *, width=80, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    console.print(bars)
    text = console.file.getvalue()
    import re

    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines()


@pytest.fixture
def bars():
    return Bars("alpine\x1b[2J:3", Console(file=io.StringIO(), force_terminal=True))


def event(*layers):
    return {"stage": "pulling", "layers": layers, "stats": {}}


def test_before_the_manifest_it_says_what_is_resolved(bars):
    assert drawn(bars)[0].startswith("Resolving alpine\\033[2J:3")


def test_finished_layers_collapse_into_one_line(bars):
    states = [layer(n, "done", 50_000_000) for n in range(98)]
    bars.update(event(layer(99, "exists"), *states, layer(100, "pulling", 25_000_000)))
    lines = drawn(bars)
    assert len(lines) == 4
    assert lines[1].startswith("64abababab")
    assert "25.0/50.0 MB" in lines[1]
    assert lines[1].rstrip().endswith("fetching")
    assert lines[2].startswith("all")
    assert lines[3].startswith("99 of 100 layers done (1 already here)")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lines_fit_and_rows_fit(bars, width):
    bars.update(event(*(layer(n, "pulling", n * 100_000) for n in range(60))))
    lines = drawn(bars, width=width, height=20)
    assert len(lines) <= 19
    assert all(len(line) <= width for line in lines)
    assert "more to come" in lines[-1]


def test_columns_do_not_jump(bars):
    bars.update(event(layer(1, "pulling", 100), layer(2, "waiting")))
    first = drawn(bars)
    bars.update(event(layer(1, "pulling", 49_999_999), layer(2, "pulling", 1)))
    second = drawn(bars)
    assert first[1].index("fetching") == second[1].index("fetching")


def test_moving_layers_come_before_waiting_ones(bars):
    bars.update(event(layer(1, "waiting"), layer(2, "pulling", 5)))
    assert drawn(bars)[1].startswith("02")


def test_a_layer_that_is_all_here_is_being_checked(bars):
    bars.update(event(layer(1, "pulling", 50_000_000)))
    assert "checking" in drawn(bars)[1]


def test_the_terminal_is_restored_and_so_is_the_signal(bars):
    before = signal.getsignal(signal.SIGTERM)

    def interrupted():
        with bars:
            bars.update(event(layer(1, "pulling", 5)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    output = bars._console.file.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    assert signal.getsignal(signal.SIGTERM) is before


def test_rates():
    meter = RateMeter()
    meter.add(0.0, 0)
    meter.add(1.0, 1000)
    assert meter.rate(1.0) == 1000
    assert meter.rate(10.0) == 0  # nothing has come for long
    meter.add(10.5, 500)  # began anew
    assert meter.rate(10.5) == 0


def test_no_bars_in_pipes():
    assert isinstance(open_reporter("x", is_quiet=False), Silent)

"""The metrics' text: what a scraper reads is what the components have counted, and no more."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from imgvol import __version__
from imgvol.api import metrics
from imgvol.tallies import Result
from support.api_fakes import FakeDaemon, requests_of, served_in_thread, statistics
from support.metrics import Metrics, scrape

DOCUMENT = Path(__file__).parents[3] / "docs/metrics.md"


def rendered(**changes) -> Metrics:
    return Metrics(metrics.render(FakeDaemon().services.info(), statistics(**changes)).decode())


def test_every_part_is_told():
    seen = rendered()
    assert seen["imgvol_build_info", f"version={__version__}"] == 1
    assert seen["imgvol_start_time_seconds"] == 1_714_000_000
    assert seen["imgvol_fetches_total", "purpose=read", "result=ok"] == 7
    assert seen["imgvol_fetches_total", "purpose=background", "result=failed"] == 1
    assert seen["imgvol_fetches_total", "purpose=prefetch", "result=ok"] == 0
    assert seen["imgvol_fetched_bytes_total", "purpose=read"] == 700_000
    assert seen["imgvol_needed_bytes_total"] == 500_000
    assert seen["imgvol_filesystem_read_bytes_total"] == 4096
    assert seen["imgvol_filesystem_passed_opens_total"] == 6
    assert seen["imgvol_filesystem_backing_files"] == 2
    assert seen["imgvol_on_demand_read_bytes_total"] == 8192
    assert seen["imgvol_on_demand_reads_waiting"] == 2
    assert seen["imgvol_on_demand_oldest_wait_seconds"] == 1.5
    assert seen["imgvol_pulls_total", "result=ok"] == 5
    assert seen["imgvol_pulls_total", "result=failed"] == 2
    assert seen["imgvol_pull_received_bytes_total"] == 10_000
    assert seen["imgvol_pulls_in_progress"] == 1
    assert seen["imgvol_layers", "state=complete"] == 3
    assert seen["imgvol_missing_bytes"] == 1_000_000
    assert seen["imgvol_layers_verified_total", "result=ok"] == 4
    assert seen["imgvol_views", "state=published"] == 2
    assert seen["imgvol_volumes"] == 3
    assert seen["imgvol_queue_running", "queue=fetch"] == 8
    assert seen["imgvol_queue_waiting", "queue=pull"] == 6


def test_histograms_are_cumulative():
    seen = rendered()
    name = "imgvol_on_demand_read_seconds"
    assert seen[f"{name}_bucket", "le=0.001"] == 1
    assert seen[f"{name}_bucket", "le=0.01"] == 1
    assert seen[f"{name}_bucket", "le=0.025"] == 2
    assert seen[f"{name}_bucket", "le=30.0"] == 2
    assert seen[f"{name}_bucket", "le=+Inf"] == seen[f"{name}_count"] == 3
    assert seen[f"{name}_sum"] == pytest.approx(100.021)


def test_requests_are_told_by_operation_and_result():
    seen = rendered(requests=requests_of(lookup=Result.OK, read=Result.LATE))
    name = "imgvol_filesystem_requests_total"
    assert seen[name, "operation=lookup", "result=ok"] == 1
    assert seen[name, "operation=read", "result=late"] == 1
    assert seen[name, "operation=read", "result=ok"] == 0
    assert seen["imgvol_filesystem_request_seconds_count", "operation=read"] == 1
    assert seen["imgvol_filesystem_requests_in_progress", "operation=read"] == 0


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("filesystem", {"is_serving": False}),
        ("layers", {"bad": 1}),
        ("registry", {"waiting": 1}),
        ("store", {"unsafe": 1}),
    ],
)
def test_one_failure_flips_one_gauge(component, changes):
    if "is_serving" not in changes:
        changes = {"views": replace(statistics().views, **changes)}
    failing = [
        sample
        for family in rendered(**changes).families
        if family.name == "imgvol_failing"
        for sample in family.samples
    ]
    assert [s.labels["component"] for s in failing if s.value] == [component]
    assert len(failing) == 4
    assert rendered()["imgvol_failing", f"component={component}"] == 0


def test_calls_of_the_cri_are_counted_by_method_and_code():
    seen = rendered()
    assert seen["imgvol_cri_calls_total", "code=OK", "method=ListImages"] == 1
    assert seen["imgvol_cri_call_seconds_count", "method=ListImages"] == 1
    assert seen["imgvol_cri_calls_in_progress", "method=ListImages"] == 0
    assert seen["imgvol_cri_calls_in_progress", "method=PullImage"] == 1


def test_names_and_units_are_as_promtool_wants_them():
    for family in rendered().families:
        assert family.name.startswith("imgvol_")
        assert family.documentation.endswith(".")
        assert family.type in {"counter", "gauge", "histogram"}
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")


def test_every_family_is_documented_and_nothing_else():
    documented = set(re.findall(r"^\| `(imgvol_[a-z_]+)", DOCUMENT.read_text(), re.MULTILINE))
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in rendered().families
    }
    assert documented == families


def test_answers_through_the_socket(short_path):
    path = short_path / "run/imgvol.sock"
    with served_in_thread(path, FakeDaemon()) as daemon:
        assert scrape(path)["imgvol_volumes"] == 3
        daemon.statistics = statistics(volumes=4)
        assert scrape(path)["imgvol_volumes"] == 4

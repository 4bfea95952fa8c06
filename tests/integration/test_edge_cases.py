"""The edge-case image through a real mount, against what umoci makes of it."""

import hashlib

import pytest

from support import transports
from support.comparison import assert_same_tree
from support.edge_cases import CASES, DISPUTED, image_of, untimed_paths
from support.images import write_docker_archive, write_layout, write_oci_archive

pytestmark = [pytest.mark.fuse, pytest.mark.servers, transports.each]


@pytest.fixture(scope="module")
def edge_view(shared_daemon, edge_reference):
    """The image from the registry, mounted."""
    target = shared_daemon.target("edge")
    shared_daemon.run("mount", edge_reference, target)
    yield target
    shared_daemon.run("unmount", target)


@pytest.mark.fault("F77")
def test_view_equals_what_umoci_unpacks(edge_view, edge_tree):
    assert_same_tree(edge_view, edge_tree, untimed=untimed_paths(CASES))


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_every_source_gives_the_same_view(daemon, edge_image, edge_tree, tmp_path, form):
    if form == "oci":
        argument = f"oci:{write_layout(tmp_path / 'layout', {'x': edge_image})}:x"
    elif form == "oci-archive":
        argument = f"oci-archive:{write_oci_archive(tmp_path / 'x.tar', {'x': edge_image})}:x"
    else:
        written = write_docker_archive(tmp_path / "x.tar", edge_image, "localhost/edge:x")
        argument = f"docker-archive:{written}"
    target = daemon.target("t")
    daemon.run("mount", argument, target)
    assert_same_tree(target, edge_tree, untimed=untimed_paths(CASES))
    daemon.run("unmount", target)


@pytest.mark.fault("F76")
def test_inode_numbers_and_order_survive_a_restart(daemon, edge_image, agent, tmp_path):
    layout = write_layout(tmp_path, {"x": edge_image})

    def look():
        target = daemon.target(f"t{len(list(daemon.base.iterdir()))}")
        daemon.run("mount", f"oci:{layout}:x", target)
        listings = {case.name: agent.ask("list", path=f"{target}/{case.name}") for case in CASES}
        daemon.run("unmount", target)
        return listings

    before = look()
    daemon.terminate()
    daemon.start()
    assert look() == before
    assert len(before["many-entries"]) > 1000


@pytest.mark.fault("F76")
def test_directory_entries_carry_the_inode_numbers_of_stat(edge_view, agent):
    for name, inode in agent.ask("list", path=f"{edge_view}/hardlinks"):
        assert agent.ask("stat", path=f"{edge_view}/hardlinks/{name}")["st_ino"] == inode


def described(agent, path):
    """`directory`, `file CONTENT` (its digest if it is long), `symlink TARGET`, or `absent`."""
    try:
        status = agent.ask("stat", path=path)
    except FileNotFoundError:
        return "absent"
    if status["type"] == "d":
        return "directory"
    if status["type"] == "l":
        return f"symlink {agent.ask('readlink', path=path)}"
    data = agent.ask_bytes("content", path=path)
    return (
        f"file {data.decode() if len(data) < 100 else 'sha256:' + hashlib.sha256(data).hexdigest()}"
    )


@pytest.fixture(scope="module")
def disputed_view(shared_daemon, tmp_path_factory):
    layout = write_layout(tmp_path_factory.mktemp("disputed"), {"x": image_of(DISPUTED)})
    target = shared_daemon.target("disputed")
    shared_daemon.run("mount", f"oci:{layout}:x", target)
    yield target
    shared_daemon.run("unmount", target)


@pytest.mark.parametrize("case", DISPUTED, ids=lambda case: case.name)
def test_disputed_case_is_as_documented(disputed_view, agent, case):
    base = f"{disputed_view}/{case.name}"
    assert {path: described(agent, f"{base}/{path}") for path in case.expect} == case.expect
    top = {path.partition("/")[0] for path in case.expect}
    assert {name for name, _ in agent.ask("list", path=base)} == top
    for name in top:
        assert agent.ask("xattrs", path=f"{base}/{name}") == {}
    assert agent.ask("stat", path=f"{base}/{min(top)}")["st_uid"] == 0

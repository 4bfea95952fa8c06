"""Fixtures that several levels use: real servers, images, a daemon, an agent."""

import gc
import os
from pathlib import Path

import pytest

from support import edge_cases, guards, rootfs, transports
from support.agent import Agent
from support.daemon import running_daemon
from support.images import Image, push, umoci_unpack, write_layout
from support.lazy_images import FORMATS, LazyImages
from support.programs import require, require_fuse, require_root
from support.proxy import running_proxy
from support.registry import running_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """An empty real registry, shared by the run: use names of your own in it."""
    require("docker-registry", "skopeo")
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        guards.shared_processes.add(running.process.pid)
        yield running
        guards.shared_processes.discard(running.process.pid)


@pytest.fixture
def agent():
    """A process that looks at a mount for the test."""
    with Agent() as started:
        yield started


@pytest.fixture
def no_collector():
    """Nothing goes but by its last reference: the collector may not come by for a long time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def transport():
    """What carries the requests of daemons: what is usual, or each in turn (`transports.each`)."""
    return os.environ.get("IMGVOL_TRANSPORT", "auto")


@pytest.fixture
def daemon(short_path, transport):
    """A daemon over an empty store; `daemon.target(name)` makes a directory to mount at."""
    require_fuse()
    prelude = transports.prelude(transport)
    with running_daemon(short_path, *transports.options(transport), prelude=prelude) as running:
        yield running


@pytest.fixture(scope="module")
def shared_daemon(our_roots, tmp_path_factory, transport):
    """The same for the tests of a module that only read."""
    require_fuse()
    directory = Path(our_roots[1]) / tmp_path_factory.mktemp("shared").name
    directory.mkdir(mode=0o755)
    prelude = transports.prelude(transport)
    with running_daemon(directory, *transports.options(transport), prelude=prelude) as running:
        yield running


@pytest.fixture(scope="session")
def edge_image() -> Image:
    """The edge cases that umoci and imgvol read alike."""
    return edge_cases.image_of(edge_cases.CASES)


@pytest.fixture(scope="session")
def edge_reference(edge_image, registry, tmp_path_factory):
    """The same image in the registry."""
    layout = write_layout(tmp_path_factory.mktemp("edge"), {"x": edge_image})
    reference = registry.reference("edge:cases")
    push(layout, "x", reference)
    return reference


@pytest.fixture(scope="session")
def edge_tree(edge_image, tmp_path_factory) -> Path:
    """What umoci makes of it."""
    require("umoci")
    require_root()
    return umoci_unpack(edge_image, tmp_path_factory.mktemp("edge-umoci"))


@pytest.fixture(scope="session")
def rootfs_layout() -> Path:
    """The layout of the real root file system image, tag `rootfs`."""
    require("mmdebstrap")
    require_root()
    return rootfs.ensure_layout()


@pytest.fixture(scope="session")
def lazy_images(registry, tmp_path_factory) -> LazyImages:
    """Images with lazy layers in the registry, by format."""
    return LazyImages(registry, tmp_path_factory.mktemp("lazy"))


@pytest.fixture(params=FORMATS)
def lazy_image(request, lazy_images):
    """One image of each format."""
    return lazy_images.get(request.param)


@pytest.fixture
def proxy(registry):
    """A line to the registry that fails on demand."""
    with running_proxy(registry.host) as running:
        yield running

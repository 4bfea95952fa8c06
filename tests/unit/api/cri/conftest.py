"""Where the CRI is served, and what it has to tell of."""

import pytest

from support.cri import FakeImages, make_image


@pytest.fixture
def path(short_path):
    return short_path / "run" / "cri.sock"


@pytest.fixture
def images():
    return FakeImages([make_image(number) for number in range(3)])

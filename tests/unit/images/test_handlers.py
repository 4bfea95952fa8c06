"""What names of runtime handlers mean."""

import pytest

from imgvol.errors import InvalidArgument
from imgvol.images.handlers import RuntimeHandler, RuntimeHandlers
from imgvol.images.readiness import Readiness


@pytest.mark.parametrize(
    ("text", "name", "platform", "readiness"),
    [
        ("kata=linux/arm64", "kata", "linux/arm64", None),
        ("kata=linux/arm64,lazy=off", "kata", "linux/arm64", Readiness.STORED),
        ("kata-qemu.v2=linux/arm/v7,lazy=auto", "kata-qemu.v2", "linux/arm/v7", Readiness.LAZY),
        ("runc=", "runc", None, None),
        ("runc=,lazy=off", "runc", None, Readiness.STORED),
    ],
)
def test_handlers_are_read(text, name, platform, readiness):
    expected = RuntimeHandler(name=name, platform=platform, readiness=readiness)
    assert RuntimeHandler.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "kata", "=linux/arm64", "a b=linux", "-x=linux", "x" * 64 + "=", "kata=linux/arm64,",
     "kata=linux/arm64,lazy", "kata=linux/arm64,lazy=maybe", "kata=linux/arm64,eager=off",
     "kata=linux/arm64,lazy=off,lazy=off", "kata=not/a/plat/form", "kata=!"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidArgument):
        RuntimeHandler.parse(text)


def test_names_are_looked_up_and_unknown_ones_refused():
    kata = RuntimeHandler(name="kata", platform="linux/arm64")
    handlers = RuntimeHandlers([kata])
    assert handlers.get("kata") is kata
    assert handlers.get("") == RuntimeHandler()
    with pytest.raises(InvalidArgument, match=r"unknown runtime handler.*runsc") as raised:
        handlers.get("runsc")
    assert "--runtime-handler" in raised.value.hint


def test_a_name_means_one_thing():
    with pytest.raises(InvalidArgument, match="twice"):
        RuntimeHandlers([RuntimeHandler(name="a"), RuntimeHandler(name="a")])

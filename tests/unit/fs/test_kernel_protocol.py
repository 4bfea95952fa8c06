"""The table of structures and numbers, against the header of the kernel, by a compiler.

Headers that are older than what the table has say so themselves: what came later is then checked
against what was read off the header of Linux 6.18.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from imgvol.fs.kernel import protocol
from imgvol.fs.kernel.protocol import (
    LAYOUTS,
    DeviceIoctl,
    InitFlag,
    NotifyCode,
    Opcode,
    OpenFlag,
    ReadFlag,
)

HEADER = Path("/usr/include/linux/fuse.h")
PREFIXES = {
    Opcode: "FUSE_",
    InitFlag: "FUSE_",
    OpenFlag: "FOPEN_",
    ReadFlag: "FUSE_READ_",
    NotifyCode: "FUSE_NOTIFY_",
    DeviceIoctl: "FUSE_DEV_IOC_",
}
NUMBERS = {
    **{prefix + each.name: each.value for kind, prefix in PREFIXES.items() for each in kind},
    "FUSE_KERNEL_VERSION": protocol.KERNEL_VERSION,
    "FUSE_ROOT_ID": protocol.ROOT_ID,
    "FUSE_MIN_READ_BUFFER": protocol.MIN_READ_BUFFER,
    "FUSE_REC_ALIGN(1)": protocol.DIRENT_ALIGN,
}
PLACES = {
    f"{layout.name}.{field}": place for layout in LAYOUTS for field, place in layout.places.items()
}
# Reserved bytes: every field that takes some moves the rest of them.
del PLACES["fuse_init_out.unused"], PLACES["fuse_init_in.unused"]
# By the minor version of the protocol that brought it.
LATER = {
    "FOPEN_PASSTHROUGH": (40, 128),
    "FUSE_DEV_IOC_BACKING_OPEN": (40, 0x4010E501),
    "FUSE_DEV_IOC_BACKING_CLOSE": (40, 0x4004E502),
    "FUSE_PASSTHROUGH": (40, 1 << 37),
    "FUSE_HAS_RESEND": (40, 1 << 39),
    "FUSE_ALLOW_IDMAP": (41, 1 << 40),
    "FUSE_NOTIFY_RESEND": (40, 7),
    "fuse_open_out.backing_id": (40, (12, 4)),
    "fuse_init_out.max_stack_depth": (40, (36, 4)),
    "fuse_backing_map": (40, 16),
    "fuse_backing_map.fd": (40, (0, 4)),
    "fuse_backing_map.flags": (40, (4, 4)),
    "fuse_backing_map.padding": (40, (8, 8)),
}
SIZES = {layout.name: layout.size for layout in LAYOUTS}
# Requests that the table does not have, by the header's names without FUSE_: all get ENOSYS.
LEFT_OUT = {
    # They change something: the kernel asks nobody on a filesystem that is mounted read-only.
    *("SETATTR", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "RENAME2", "LINK"),
    *("WRITE", "FSYNC", "FSYNCDIR", "SETXATTR", "REMOVEXATTR", "CREATE", "TMPFILE", "FALLOCATE"),
    *("COPY_FILE_RANGE", "COPY_FILE_RANGE_64", "SYNCFS"),
    # Not asked for in INIT, or the answer to what we never tell.
    *("GETLK", "SETLK", "SETLKW", "SETUPMAPPING", "REMOVEMAPPING", "NOTIFY_REPLY"),
    # After ENOSYS the kernel does these by itself, or says that they cannot be done.
    *("LSEEK", "POLL", "IOCTL", "BMAP", "STATX"),
    # No request.
    "INIT_BSWAP_RESERVED",
}


def minor_of_header():
    return int(re.search(r"FUSE_KERNEL_MINOR_VERSION (\d+)", HEADER.read_text())[1])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What a compiler makes of the header, by name."""
    assert HEADER.exists(), "install linux-libc-dev: what builds pyfuse3 needs it, too"
    assert shutil.which("cc"), "install gcc: what builds pyfuse3 needs it, too"
    known = {name for name, (since, _) in LATER.items() if since > minor_of_header()}
    lines = []
    for name in sorted(NUMBERS.keys() - known):
        lines.append(f'printf("{name} %llu\\n", (unsigned long long)({name}));')
    for place in sorted(PLACES.keys() - known):
        struct, field = place.split(".")
        of = f"((struct {struct} *)0)->{field}"
        at = f"offsetof(struct {struct}, {field})"
        lines.append(f'printf("{place} %zu %zu\\n", {at}, sizeof({of}));')
    for name in sorted(SIZES.keys() - known):
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
    directory = tmp_path_factory.mktemp("header")
    includes = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fuse.h>\n"
    source = directory / "header.c"
    source.write_text(includes + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    subprocess.run(["cc", "-o", directory / "header", source], check=True, timeout=60)
    output = subprocess.run([directory / "header"], check=True, capture_output=True, text=True)
    found = {}
    for line in output.stdout.splitlines():
        name, *numbers = line.rsplit(" ", 2 if "." in line else 1)
        found[name] = tuple(map(int, numbers)) if len(numbers) > 1 else int(numbers[0])
    return found


def test_numbers_are_those_of_the_header(compiled):
    checked = compiled.keys() & NUMBERS.keys()
    assert len(checked) > 40
    assert {name: NUMBERS[name] for name in checked} == {name: compiled[name] for name in checked}


def test_fields_are_where_the_header_has_them(compiled):
    checked = compiled.keys() & PLACES.keys()
    assert len(checked) > 100
    assert {name: PLACES[name] for name in checked} == {name: compiled[name] for name in checked}


def test_structures_are_as_long_as_in_the_header(compiled):
    checked = compiled.keys() & SIZES.keys()
    assert len(checked) > 20
    assert {name: SIZES[name] for name in checked} == {name: compiled[name] for name in checked}


def test_requests_of_the_header_are_in_the_table_or_left_out_on_purpose():
    (opcodes,) = re.findall(r"enum fuse_opcode \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)
    names = set(re.findall(r"^\s+FUSE_(\w+)\s*=", opcodes, re.MULTILINE))
    assert len(names) > 40
    assert names <= Opcode.__members__.keys() | LEFT_OUT
    assert not Opcode.__members__.keys() & LEFT_OUT


def test_ioctls_say_how_long_their_argument_is():
    """_IOW(FUSE_DEV_IOC_MAGIC, number, type)."""
    sizes = {each: each >> 16 & (1 << 14) - 1 for each in DeviceIoctl}
    assert sizes == {
        DeviceIoctl.BACKING_OPEN: protocol.BACKING_MAP.size,
        DeviceIoctl.BACKING_CLOSE: protocol.BACKING_ID_SIZE,
    }


@pytest.mark.parametrize("name", LATER)
def test_what_came_later_is_as_in_linux_6_18(name):
    assert {**NUMBERS, **PLACES, **SIZES}[name] == LATER[name][1]


def test_all_that_the_table_has_is_checked_by_one_of_both(compiled):
    table = NUMBERS.keys() | PLACES.keys() | SIZES.keys()
    assert table == (compiled.keys() & table) | LATER.keys()

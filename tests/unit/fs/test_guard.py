"""FUSEErrors are made in one place, and every handler is guarded: read off the source."""

import ast
from pathlib import Path

import imgvol

SOURCE = Path(imgvol.__file__).parent


def test_fuse_errors_are_made_in_the_guard_only():
    makers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("FUSEError")
    }
    assert makers == {"fs/guard.py"}


def test_every_handler_is_guarded():
    tree = ast.parse((SOURCE / "fs/operations.py").read_text())
    (operations,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Operations"
    ]
    handlers = [node for node in operations.body if isinstance(node, ast.AsyncFunctionDef)]
    assert len(handlers) >= 13
    for handler in handlers:
        assert [ast.unparse(d) for d in handler.decorator_list] == ["guarded"], handler.name

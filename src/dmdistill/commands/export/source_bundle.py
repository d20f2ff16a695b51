"""Several modules of this package as one source file, for folders that must work without the package."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

__all__ = ["bundle_modules", "module_file"]


def bundle_modules(*names: str) -> str:
    """Concatenate the source of modules, each after the modules of this package that it imports."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            tree = ast.parse(module_file(name).read_text(encoding="utf-8"))
            for node in filter(is_internal_import, tree.body):
                visit(node.module)  # type: ignore[attr-defined]
            order.append(name)

    for name in names:
        visit(name)
    bodies = (strip_imports(module_file(name).read_text(encoding="utf-8")) for name in order)
    return "from __future__ import annotations\n\n" + "\n\n".join(bodies) + "\n"


def module_file(name: str) -> Path:
    """Return the source file of a module, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def is_internal_import(node: ast.stmt) -> bool:
    """Tell whether a statement imports from this package."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmdistill.")


def strip_imports(text: str) -> str:
    """Remove a module's imports from this package, its __future__ import and its __all__."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if future or exports or is_internal_import(node):
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip()

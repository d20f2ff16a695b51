"""Several modules of ours as one file of source, for folders that must work without the package."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

__all__ = ["joined_source", "source_of"]


def joined_source(*names: str) -> str:
    """The source of these modules, each after those of ours that it imports, without the imports between them."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for imported in imports_of_ours(tree_of(name)):
                visit(imported)
            order.append(name)

    for name in names:
        visit(name)
    bodies = [source_of(name).read_text(encoding="utf-8") for name in order]
    return "from __future__ import annotations\n\n" + "\n\n".join(alone(body) for body in bodies) + "\n"


def source_of(name: str) -> Path:
    """The file of a module, which is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def tree_of(name: str) -> ast.Module:
    return ast.parse(source_of(name).read_text(encoding="utf-8"))


def imports_of_ours(tree: ast.Module) -> list[str]:
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [module for module in modules if module is not None and module.startswith("dmdistill.")]


def alone(text: str) -> str:
    """A module's text without its imports of ours, its __future__ and its __all__."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if module == "__future__" or module.startswith("dmdistill.") or exports:
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip()

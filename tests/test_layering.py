"""The arrows between the packages, read from every module's imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("grounding", "extract", "probe", "visualize")
ALLOWED = {
    "grounding": {"grounding"},
    "extract": {"extract", "grounding"},
    "probe": {"probe", "extract", "grounding"},
    "visualize": {"visualize", "grounding"},
}
MODULES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the importing module is) of every import; type-only ones are left out."""
    nested = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in nested
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            yield str(node.module), id(node) not in nested


def offences(package: str, inside: str, source: str) -> list[str]:
    """Imports of a module that the design does not allow."""
    found = []
    for module, eager in imported(ast.parse(source)):
        top = module.partition(".")[0]
        if top not in PACKAGES or top in ALLOWED[package]:
            continue
        if package == "visualize" and module == "extract.reader":
            continue
        if package == "probe" and inside.startswith("probe/cli/") and top == "visualize" and not eager:
            continue
        found.append(module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    inside = path.relative_to(PROJECT).as_posix()
    assert offences(path.relative_to(PROJECT).parts[0], inside, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("package", "inside", "source"),
    [
        ("grounding", "grounding/x.py", "import extract.store"),
        ("extract", "extract/x.py", "from probe.sweep import sweep"),
        ("visualize", "visualize/x.py", "from extract.run import extract"),
        ("probe", "probe/sweep.py", "def f():\n    import visualize.style"),
        ("probe", "probe/cli/x.py", "import visualize.style"),
    ],
)
def test_a_forbidden_arrow_is_seen(package: str, inside: str, source: str) -> None:
    assert offences(package, inside, source)


def test_every_package_says_its_job() -> None:
    for package in PACKAGES:
        tree = ast.parse((PROJECT / package / "__init__.py").read_text(encoding="utf-8"))
        assert len(ast.get_docstring(tree) or "") > 80, package


def test_distribution_lists_every_package() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    listed = set(setup["options.packages.find"]["include"].split())
    assert listed == {name for package in PACKAGES for name in (package, f"{package}.*")}

"""The arrows of DESIGN: who may import whom, and where a database's quirks live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "acp_store"

# A file may import from its own layer and those above it; backends never from one another.
LAYERS = (
    ("errors",),
    ("records", "checks", "codec", "forks", "actors", "chain", "verifying"),
    ("watching",),
    ("repository",),
    ("models",),
    ("backends.sql", "backends.redis"),
    ("decorators",),
    ("aio",),
    ("connect", "migrate"),
    ("audit",),
    ("testing", "integrations", "cli"),
)
MAY_IMPORT_SQLALCHEMY = ("models", "backends.sql", "aio", "cli")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _layer(name: str) -> int | None:
    for depth, layer in enumerate(LAYERS):
        if any(name == room or name.startswith(f"{room}.") for room in layer):
            return depth
    return None


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _of_ours(path: Path) -> set[str]:
    return {name.removeprefix("acp_store.") for name in _imports(path) if name.startswith("acp_store.")}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_up(path: Path) -> None:
    """No file imports from a layer below its own, nor a backend from another."""
    name = _name(path)
    mine = _layer(name)
    if mine is None:
        assert name == "backends"
        return
    for target in _of_ours(path):
        theirs = _layer(target)
        if theirs is None:
            continue
        assert theirs <= mine, f"{name} imports {target}, which is below it"
        if theirs == mine and name.startswith("backends."):
            assert target.split(".")[1] == name.split(".")[1], f"{name} imports another backend, {target}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_sqlalchemy_stays_in_its_rooms(path: Path) -> None:
    """Only tables, the SQL backend and the edges know SQLAlchemy."""
    name = _name(path)
    if not name.startswith(MAY_IMPORT_SQLALCHEMY):
        assert not any(found.split(".")[0] == "sqlalchemy" for found in _imports(path))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nobody_asks_which_dialect_it_is(path: Path) -> None:
    """A database's quirks have one address; elsewhere no name of a dialect is compared."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            assert "dialect.name" not in ast.unparse(node)


def test_every_package_is_shipped() -> None:
    """The list of packages in pyproject.toml names every folder with Python files in it."""
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    expected = {".".join(("acp_store", *folder.relative_to(PACKAGE).parts)) for folder in folders}
    assert set(settings["packages"]) == expected | {"acp_store.migrations", "acp_store.migrations.versions"}

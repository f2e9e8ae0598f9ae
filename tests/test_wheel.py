"""The wheel: complete, and working from another folder without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from acp_store.models import REVISION

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's content, as an installation has it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("acp_store", "migrations", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    output = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(source / "dist" / output.splitlines()[-1]) as wheel:
        wheel.extractall(target)
    return target


def _python(installed: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_has_every_file(installed: Path) -> None:
    """Every Python file of the package and the migrations is in the wheel, and so are the marker and the template."""
    for folder, shipped in (("acp_store", "acp_store"), ("migrations", "acp_store/migrations")):
        for path in (ROOT / folder).rglob("*.py"):
            assert (installed / shipped / path.relative_to(ROOT / folder)).is_file()
    assert (installed / "acp_store" / "py.typed").is_file()
    assert (installed / "acp_store" / "migrations" / "script.py.mako").is_file()


def test_the_wheel_migrates(installed: Path, empty_url: str) -> None:
    """From an installed wheel, in another folder, the schema goes up, is right, and goes down."""
    code = """if True:
        import sys, acp_store
        from acp_store import migrate
        url, folder = sys.argv[1:]
        assert acp_store.__file__.startswith(folder), acp_store.__file__
        migrate.upgrade(url)
        assert migrate.check(url) == []
        with acp_store.open_repository(url) as repository:
            repository.save_run({"agent_name": "echo"})
        migrate.downgrade(url, "base")
        print(migrate.current(url))
    """
    assert _python(installed, "-c", code, empty_url, str(installed)) == "None\n"


def test_the_wheel_has_the_command(installed: Path, empty_sqlite_url: str) -> None:
    """``acp-store db`` works from an installed wheel."""
    _python(installed, "-m", "acp_store.cli", "db", "upgrade", DATABASE_URL=empty_sqlite_url)
    assert REVISION in _python(installed, "-m", "acp_store.cli", "db", "current", DATABASE_URL=empty_sqlite_url)

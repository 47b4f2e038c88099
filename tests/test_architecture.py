"""The floors of the house: the import contract of pyproject.toml holds, and a breach would be seen."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
RUN = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, "--no-cache", "--no-logo", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contract(path: Path, layers: str, options: str = "") -> Path:
    path.write_text(
        f"""[tool.importlinter]
root_package = "lensborn"
[[tool.importlinter.contracts]]
name = "a trial"
type = "layers"
containers = ["lensborn"]
layers = {layers}
{options}
"""
    )
    return path


def test_a_room_imports_only_from_lower_floors() -> None:
    result = lint_imports(PYPROJECT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_an_import_from_a_higher_floor_is_found(tmp_path: Path) -> None:
    result = lint_imports(contract(tmp_path / "pyproject.toml", '["defaults", "photo"]'))
    assert result.returncode == 1
    assert "lensborn.photo -> lensborn.defaults" in result.stdout


def test_a_room_without_a_floor_is_found(tmp_path: Path) -> None:
    result = lint_imports(contract(tmp_path / "pyproject.toml", '["photo", "defaults"]', "exhaustive = true"))
    assert result.returncode == 1
    assert "lensborn.faces" in result.stdout

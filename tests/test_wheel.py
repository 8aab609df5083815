"""The built wheel, used outside the clone: everything that the command needs is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "grounding", "extract", "probe", "visualize")

FINE_TUNED = ("vilt-aligner-task", "vilt-aligner-grounded", "mdetr-task", "mdetr-grounded")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages alone, built from a copy: a build writes into its tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        (shutil.copytree if (PROJECT / name).is_dir() else shutil.copy)(PROJECT / name, source / name)
    run("build", "--wheel", "--outdir", str(folder / "dist"), str(source), cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run("pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def run(module: str, *words: str, cwd: Path) -> None:
    """Run ``python -m MODULE WORDS``; what it printed is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def probe(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``probe WORDS`` with the wheel's packages before any other."""
    script = "import sys; from probe.cli import main; sys.argv[0] = 'probe'; main()"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", script, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_wheel_holds_only_our_packages_and_their_data(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")}
    assert folders == {"grounding", "extract", "probe", "visualize", "bin"}
    for name in FINE_TUNED:
        weights = installed / "grounding" / "bundled" / name / "model.safetensors"
        assert 0 < weights.stat().st_size <= 8_000_000
    for name in ("templates/index.html", "templates/report.html", "front/app.js", "front/base.css"):
        assert (installed / "visualize" / name).is_file()


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = "import grounding; print(grounding.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(installed))
    done = probe(installed, tmp_path, "demo", "--examples", "40", "--out", "demo")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in FINE_TUNED)
    for name in FINE_TUNED:
        assert (tmp_path / "demo" / name / "sweep" / "sweep.csv").is_file()


@pytest.mark.slow
def test_bad_input_has_its_exit_code_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    done = probe(installed, tmp_path, "extract", "--ckpt", "nothing", "--benchmark", "mini-game", "--out", "x")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()

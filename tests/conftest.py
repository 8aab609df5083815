"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """What programs keep for later is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data and reference numbers; skips where there is none."""
    folder = Path(os.environ.get("PROBE_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data: set PROBE_SHARED_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one core; they find the modules of the tests by PYTHONPATH. Socket names must be short."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]))
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=100 * 2**20, _temp_dir=folder,
        )  # fmt: skip
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system; skips where there is none."""
    from report_browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def look(browser):
    """Opens reports in a page; at the end nothing has left it and no error was logged."""
    from report_browser import looking

    with looking(browser) as look_at:
        yield look_at


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a report of two runs of 60 examples, and what it is of."""
    from report_pages import write_two

    folder = tmp_path_factory.mktemp("browser") / "two"
    _, subjects, _ = write_two(folder, 60)
    return folder, subjects

"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data and reference numbers; skips where there is none."""
    folder = Path(os.environ.get("PROBE_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data: set PROBE_SHARED_DATA (looked in {folder})")
    return folder

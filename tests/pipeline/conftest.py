"""Fixtures of the pipeline's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.support import make


@pytest.fixture(scope="session")
def whole(five_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete data set of the five photos, to compare with and to copy."""
    out = tmp_path_factory.mktemp("whole") / "out"
    make(five_photos, out)
    return out

"""A small data set, and a copy that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.shards.support import make_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("format") / "shards")


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))

"""One small world for all search tests, because it takes seconds to build."""

from __future__ import annotations

import pytest
from asking import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return an index of the mini corpus, its model, and a spoken query."""
    return make_world(tmp_path_factory.mktemp("world"))

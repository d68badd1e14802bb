"""Shared fixtures and helper modules of the tests. No test uses the network."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "utils")]
os.environ["HF_HUB_OFFLINE"] = "1"

#: Long files. tools/test.sh starts them first, or one process would wait for the other at the end.
LONG = ("test_end_to_end.py", "test_driver.py", "test_mini_corpus.py", "test_distributed.py", "test_page.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of files that were synced to the disk, in order, under their names at that time."""
    seen: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start one Chromium for all tests. Its fake microphone repeats a spoken query of the demo."""
    import soundfile
    from browser import chromium, demo_query

    samples, rate = soundfile.read(demo_query())
    spoken = tmp_path_factory.mktemp("microphone") / "query.wav"
    soundfile.write(spoken, samples, rate, subtype="PCM_16")
    with chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
        "--autoplay-policy=no-user-gesture-required",
    ) as opened:
        yield opened

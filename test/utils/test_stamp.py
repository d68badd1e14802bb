"""utils/stamp.py, where the driver's tests do not show it."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import fake_recipe
import pytest


def test_done_means_on_the_disk(tmp_path: Path, synced: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").write_text("x")
    (tmp_path / "folder").mkdir()
    stamp = tmp_path / ".done" / "2_features"
    monkeypatch.setattr(sys, "argv", ["stamp.py", "write", str(stamp)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"output\t{tmp_path / 'made'}\nshared\t{tmp_path / 'folder'}\n"))
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(fake_recipe.ROOT / "utils" / "stamp.py"), run_name="__main__")
    assert stamp.is_file()
    made, temporary = synced
    assert made == tmp_path / "made" and temporary.parent == stamp.parent and temporary.name.startswith(".2_features.")

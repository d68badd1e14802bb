"""utils/stamp.py: outputs reach the disk before the stamp, and later stages see only what they depend on."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import fake_recipe
import pytest


def test_a_stamp_is_written_after_its_outputs(
    tmp_path: Path, synced: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize(
    ("changed", "unchanged"),
    [
        ("value\tlr=2", False), ("aside\tmirror=b", True), ("value\tlr=2\nlater\toutputs", True),
        ("file\tscript.sh", False), ("script\tscript.sh", True), ("file\tscript.sh\nlater\toutputs", True),
    ],
)  # fmt: skip
def test_later_stages_see_inputs_unless_they_are_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, unchanged: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    stamp = runpy.run_path(str(fake_recipe.ROOT / "utils" / "stamp.py"))

    def outcome(lines: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stamp.py", "write", "1_stage"])
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"output\tmade\n{lines}\n"))
        assert stamp["main"]() == 0
        return str(stamp["outcome"](tmp_path / "1_stage"))

    (tmp_path / "made").write_text("x")
    (tmp_path / "script.sh").write_text("one")
    before = outcome(changed.replace("lr=2", "lr=1").replace("mirror=b", "mirror=a"))
    (tmp_path / "script.sh").write_text("two")
    assert (outcome(changed) == before) == unchanged
    (tmp_path / "made").write_text("y")
    assert outcome(changed) != before  # outputs always count

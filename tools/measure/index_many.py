#!/usr/bin/env python3
"""Index many pictures, kill the run at several moments, resume it, and update the index with a few more.

The pictures are generated: rectangles of random colours, saved as JPEG. SIGKILL comes when a part of them is embedded,
and once more while the index is written. After every kill the index must be the old one, or missing if there was none.
The resumed run must embed only the rest, and the index must equal that of a run without kills for a sample of pictures.
Then some pictures are added, some change and some are deleted, and the update is killed and run again.

Usage: tools/measure/index_many.py [--count 10000] [--more 10] [--model mini] [--out DIR]
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

PARTS = (0.2, 0.5, 0.8)  # of the pictures that are embedded when the kill comes
SAMPLE = 50  # pictures whose embeddings are compared


def draw(folder: Path, first: int, count: int, seed: int = 0) -> None:
    """Write pictures with the numbers ``first`` to ``first + count - 1``."""
    import numpy as np
    from PIL import Image, ImageDraw

    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        picture = Image.new("RGB", (320, 240), tuple(rng.integers(0, 256, 3).tolist()))
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            left, top = rng.integers(0, 300), rng.integers(0, 220)
            box = (left, top, left + rng.integers(10, 160), top + rng.integers(10, 120))
            pen.rectangle([int(side) for side in box], fill=tuple(rng.integers(0, 256, 3).tolist()))
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=85)


class Runs:
    """Runs of ``speechclip index`` for one folder.

    Args:
        folder: holds ``pictures`` and ``idx``.
        model: see ``speechclip index``.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.index, self.pictures = folder / "idx", folder / "pictures"
        self.journal = folder / "idx.embedded.part" / "records.jsonl"
        self.model = model

    def start(self, update: bool) -> subprocess.Popen[str]:
        """Start a run."""
        words = ["--images", str(self.pictures), "--out", str(self.index), "--model", self.model, "--device", "cpu"]
        words = [sys.executable, "-m", "speechclip.cli", "index", *words, *(["--update"] if update else [])]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, update: bool = False) -> dict[str, Any]:
        """Run to the end. Return time, processor time, peak memory, lines, and how many files were known before."""
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = self.start(update)
        output, peak = [], 0
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line.rstrip())
            peak = max(peak, _peak(process.pid))
        if process.wait():
            raise UserError(f"{self.index}: the run failed: {' '.join(output)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        counts = [re.match(r"(\d+) files have not changed", line) for line in output]
        known = next((int(found[1]) for found in counts if found), 0)
        return {
            "seconds": time.perf_counter() - began, "known": known, "lines": output,
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "peak_mb": after.ru_maxrss / 1024,
        }  # fmt: skip

    def kill(self, moment: int | str, update: bool = False) -> int:
        """Kill a run when so many files are embedded, or "writing" the index. Return the files in the journal."""
        process = self.start(update)
        part = self.index.with_name("idx.part")
        while process.poll() is None:
            if part.exists() if moment == "writing" else self.embedded() >= int(moment):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        if process.wait() != -signal.SIGKILL:
            raise UserError(f"{self.index}: the run ended before the kill at {moment}. Give a larger --count.")
        return self.embedded()

    def embedded(self) -> int:
        """Return the number of files in the journal."""
        return self.journal.read_bytes().count(b"\n") if self.journal.is_file() else 0

    def content(self) -> dict[str, Any] | None:
        """Return ids and embeddings by id, after all checks of the index; None if it is missing."""
        from speechclip.search.index import ImageIndex

        if not self.index.exists() and not self.index.with_name("idx.old").exists():
            return None
        index = ImageIndex.open(self.index)
        if any(index.thumbnail(row) is None for row in range(0, len(index), max(1, len(index) // SAMPLE))):
            raise UserError(f"{self.index}: a thumbnail is missing")
        return dict(zip(index.ids, index.vectors, strict=True))


def _peak(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", text)
    return int(found[1]) if found else 0


def check(condition: bool, problem: str) -> None:
    """Raise a UserError if a condition does not hold."""
    if not condition:
        raise UserError(problem)


def check_content(runs: Runs, count: int) -> dict[str, Any]:
    """Check that the index has all pictures, and that a sample has the embeddings of the model."""
    import numpy as np

    from speechclip.search.query import load_for_search

    found = runs.content()
    check(found is not None and len(found) == count, f"{runs.index}: not {count} pictures")
    assert found is not None
    ids = sorted(found)[:: max(1, count // SAMPLE)]
    wanted = load_for_search(runs.model, "cpu").encode_image([str(runs.pictures / item) for item in ids]).numpy()
    difference = float(np.abs(np.stack([found[item] for item in ids]) - wanted).max())
    check(difference < 1e-5, f"{runs.index}: an embedding differs by {difference}")
    return found


def measure(folder: Path, count: int, more: int, model: str) -> list[dict[str, Any]]:
    """Run everything and return the rows of the table."""
    runs, rows = Runs(folder, model), []
    draw(runs.pictures, 0, count)
    for part in PARTS:
        left = runs.kill(int(part * count))
        check(runs.content() is None, f"{runs.index}: a killed run left an index")
        rows.append({"run": f"killed at {left} embedded", "known": left})
    left = runs.kill("writing")
    check(runs.content() is None, f"{runs.index}: a killed run left an index")
    rows.append({"run": "killed while the index is written", "known": left})
    rows.append({"run": "resumed", **runs.finish()})
    check_content(runs, count)
    draw(runs.pictures, count, more)
    draw(runs.pictures, 0, 1, seed=1)  # changes the first picture
    (runs.pictures / "000" / "000001.jpg").unlink()
    before = runs.content()
    runs.kill("writing", update=True)
    now = runs.content()
    check(before is not None and now is not None and before.keys() == now.keys(), f"{runs.index}: not the old index")
    rows.append({"run": "update killed while the index is written", "known": runs.embedded()})
    rows.append({"run": f"update: {more} new, 1 changed, 1 removed", **runs.finish(update=True)})
    check_content(runs, count + more - 1)
    rows.append({"run": "update without changes", **runs.finish(update=True)})
    return rows


@exit_on_user_error
def main() -> None:
    """Measure and print a table."""
    parser = ArgumentParser(prog="index_many.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of pictures")
    parser.add_argument("--more", type=int, default=10, help="number of pictures that are added")
    parser.add_argument("--model", default="mini", help="see speechclip index")
    parser.add_argument("--out", default="", metavar="DIR", help="parent of the temporary folder")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    if args.count < 200 or args.more < 1:
        parser.error("--count must be at least 200, --more at least 1")

    from speechclip.common.provenance import commit

    with tempfile.TemporaryDirectory(dir=args.out or None) as scratch:
        rows = measure(Path(scratch), args.count, args.more, args.model)
    print(f"{' '.join(sys.argv)} (commit {commit()})\n\n| run | files known before | s | CPU s | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        cells = [f"{row[key]:.0f}" if key in row else "-" for key in ("seconds", "cpu", "peak_mb")]
        print(f"| {row['run']} | {row['known']:,} | {' | '.join(cells)} |")
    if args.json:
        kept = [{key: value for key, value in row.items() if key != "lines"} for row in rows]
        Path(args.json).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

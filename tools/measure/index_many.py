#!/usr/bin/env python3
"""Index many pictures, kill the run at several moments, resume it, and update the index with a few more.

The pictures are generated: rectangles of random colours, saved as JPEG. SIGKILL comes when a part of them is embedded,
and once more while the index is written. After every kill the index must be the old one, or missing if there was none.
The resumed run must embed only the rest. Then some pictures are added, one changes and one is deleted, and the update
is killed and run again. At the end another index of the same pictures is made in a run without kills. Both indexes must
have the same ids, embeddings and thumbnails.

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
SAMPLE = 50  # pictures whose embeddings are compared with those of the model
TOLERANCE = 1e-5  # of an embedding's components


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
        folder: holds ``pictures`` and the index.
        model: see ``speechclip index``.
        name: the name of the index.
    """

    def __init__(self, folder: Path, model: str, name: str = "idx") -> None:
        self.index, self.pictures = folder / name, folder / "pictures"
        self.journal = folder / f"{name}.embedded.part" / "records.jsonl"
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
        part = self.index.with_name(f"{self.index.name}.part")
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

    def content(self) -> dict[str, tuple[Any, bytes]] | None:
        """Return embeddings and thumbnails by id, after all checks of the index; None if it is missing."""
        from speechclip.search.index import ImageIndex

        if not self.index.exists() and not self.index.with_name(f"{self.index.name}.old").exists():
            return None
        index = ImageIndex.open(self.index)
        thumbnails = [index.read_thumbnail(row) for row in range(len(index))]
        if None in thumbnails:
            raise UserError(f"{self.index}: the thumbnail of row {thumbnails.index(None)} is missing")
        return dict(zip(index.ids, zip(index.vectors, thumbnails), strict=True))


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


def check_content(runs: Runs, count: int) -> None:
    """Check that the index has all pictures, and that a sample has the embeddings of the model."""
    import numpy as np

    from speechclip.search.query import load_for_search

    found = runs.content()
    check(found is not None and len(found) == count, f"{runs.index}: not {count} pictures")
    assert found is not None
    ids = sorted(found)[:: max(1, count // SAMPLE)]
    wanted = load_for_search(runs.model, "cpu").encode_image([str(runs.pictures / item) for item in ids]).numpy()
    difference = float(np.abs(np.stack([found[item][0] for item in ids]) - wanted).max())
    check(difference < TOLERANCE, f"{runs.index}: an embedding differs by {difference}")


def check_equal(one: Runs, other: Runs) -> float:
    """Check that two indexes have the same pictures. Return the largest difference of two embeddings of a picture.

    A batch of the encoder has other pictures after a kill, so the embeddings may differ by rounding.
    """
    import numpy as np

    first, second = one.content() or {}, other.content() or {}
    check(list(first) == list(second), f"{one.index}: other ids than {other.index}")
    different = [item for item in first if first[item][1] != second[item][1]]
    check(not different, f"{one.index}: another thumbnail than {other.index} for {different[:1]}")
    difference = max(float(np.abs(first[item][0] - second[item][0]).max()) for item in first)
    check(difference < TOLERANCE, f"{one.index}: an embedding differs from {other.index} by {difference}")
    return difference


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
    check(rows[-1]["known"] == left, f"{runs.index}: {rows[-1]['known']} files were known, not {left}")
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
    whole = Runs(folder, model, "whole")
    rows.append({"run": "another index, without kills", **whole.finish()})
    rows[-1]["difference"] = check_equal(runs, whole)
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
    print(f"\nlargest difference of an embedding between the two indexes: {rows[-1]['difference']:.1g}")
    if args.json:
        kept = [{key: value for key, value in row.items() if key != "lines"} for row in rows]
        Path(args.json).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""QbE: dynamic time warping on each hidden state with s3prl's run_downstream. No model is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from sweep import Upstream, run_s3prl

from speechclip.common.errors import UserError

DETECTIONS = "benchmark.stdlist.xml"


def run_query_by_example(
    options: Any, corpus: Path, upstream: Upstream, settings: dict[str, Any], folder: Path
) -> None:
    """Write the detections, ``benchmark.stdlist.xml``, of the development and the evaluation queries.

    Each hidden state has one folder. SUPERB uses the state that is best on the development queries. The scripts of
    QUESST 2014 compute the score (MTWV).
    """
    settings["downstream_expert"]["datarc"]["dataset_root"] = str(corpus)
    for layer in range(count_states(upstream)):
        for split in ("dev", "eval"):
            _search(options, upstream, settings, layer, split, folder / f"state_{layer}" / split)


def _search(
    options: Any, upstream: Upstream, settings: dict[str, Any], layer: int, split: str, folder: Path
) -> None:  # fmt: skip
    """Search one set of queries with one hidden state, unless the result exists."""
    stamp, wanted = "settings.json", json.dumps({"config": settings, "weights": upstream.fingerprint()})
    if folder.is_dir() and options.force == "false":
        if (folder / stamp).read_text() != wanted:
            raise UserError(f"{folder}: has other settings. Use --force true to start over, or --tag to keep it.")
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / stamp).write_text(wanted)
    config = part / "config.yaml"
    expert = {**settings["downstream_expert"], "max_workers": options.nj}
    config.write_text(yaml.safe_dump({**settings, "downstream_expert": expert}, sort_keys=False))
    words = ["-m", "evaluate", "-t", split, "-u", upstream.name, "-l", str(layer), "-d", "quesst14_dtw"]
    words += ["-c", str(config), "-p", str(part), "--device", options.device, "--seed", str(options.seed)]
    words += ["-k", upstream.checkpoint] if upstream.checkpoint else []
    corpus = settings["downstream_expert"]["datarc"]["dataset_root"]
    run_s3prl(["run_downstream", *words], part / "log.txt", f"QbE on {corpus}")
    if not (part / DETECTIONS).is_file():
        raise UserError(f"{part / DETECTIONS}: is missing. See {part / 'log.txt'}.")
    shutil.rmtree(folder, ignore_errors=True)  # with --force: the earlier result stays until here
    part.rename(folder)
    print(f"{folder / DETECTIONS}: written", flush=True)


def count_states(upstream: Upstream) -> int:
    """Return the number of hidden states of an upstream."""
    from speechclip.upstream import register

    register()
    from s3prl.nn import S3PRLUpstream

    return int(S3PRLUpstream(upstream.name, path_or_url=upstream.checkpoint or None).num_layers)

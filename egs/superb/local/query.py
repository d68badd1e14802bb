"""QbE: dynamic time warping on one hidden state after another, through s3prl's run_downstream. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from sweep import Upstream, run_s3prl

from speechclip.errors import UserError


def run_query_by_example(options: Any, corpus: Path, upstream: Upstream, settings: dict[str, Any]) -> None:
    """Write ``benchmark.stdlist.xml``, the detections, of the development and the evaluation queries.

    For every hidden state, one folder: SUPERB takes the one that is best on the development queries. Scoring them
    (MTWV) is done by the scripts that come with QUESST 2014.
    """
    settings = {key: value for key, value in settings.items() if key != "stop"}
    settings["downstream_expert"]["datarc"]["dataset_root"] = str(corpus)
    folder = Path("exp").resolve() / ("qbe" + (f"_{options.tag}" if options.tag else "")) / upstream.label
    for layer in range(count_states(upstream)):
        for split in ("dev", "eval"):
            out = folder / f"state_{layer}" / split
            found = out / "benchmark.stdlist.xml"
            if found.is_file() and options.force == "false":
                continue
            out.mkdir(parents=True, exist_ok=True)
            config = out / "config.yaml"
            config.write_text(yaml.safe_dump(settings, sort_keys=False))
            words = ["-m", "evaluate", "-t", split, "-u", upstream.name, "-l", str(layer), "-d", "quesst14_dtw"]
            words += ["-c", str(config), "-p", str(out), "--device", options.device, "--seed", str(options.seed)]
            words += ["-k", upstream.checkpoint] if upstream.checkpoint else []
            run_s3prl(["run_downstream", *words], out / "log.txt")
            if not found.is_file():
                raise UserError(f"{found}: s3prl wrote no detections; see {out / 'log.txt'}")
            print(f"{found}: written", flush=True)


def count_states(upstream: Upstream) -> int:
    """How many hidden states an upstream has."""
    from speechclip.upstream import register

    register()
    from s3prl.nn import S3PRLUpstream

    return int(S3PRLUpstream(upstream.name, path_or_url=upstream.checkpoint or None).num_layers)

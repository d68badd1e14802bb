"""Write BENCHMARKS.md from the results: tables, machine, command and commit of every section, and the growth plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import OURS, PLAIN
from sections import COMPILED, GPU_SECTIONS, HEADS, SHAPES

Rows = list[dict[str, Any]]
HELP_SECONDS = 0.5  # target for every --help
GPU_CORPUS_RATIO = 3.0  # target for the hidden states of a corpus on a GPU
RERANK_SECONDS = 1.0  # target for a query with a reranker
FINE_RATIO = 10.0  # target for pairs per second against a plain loop
MEMORY_TEXT = (
    "A training step of fast_vgs at the published size in single precision, without the waveform convolutions: bytes "
    "of all live tensors at the peak. They are counted on a CPU with tensors that have sizes but no values, so nothing "
    "is computed. A test checks that a real step gives the same count. The memory that a GPU library takes for itself, "
    "about 1 GB, is not in it. Attention on a CPU keeps its weights if dropout is on, which the kernels of a GPU do "
    "not. So dropout is off in most rows. Its masks for the hidden states, 0.4 GB by estimate, are then left out. The "
    "row with dropout holds masks and weights and is an upper bound."
)
GPU_GIB = 24  # memory of the GPU that a published batch has to fit
STEP_COLUMNS = ["plain, s", "ours, s", "ratio", "plain, MB", "ours, MB", "ratio"]
SKIPPED = ["skipped", *["-"] * 5]  # the cells of STEP_COLUMNS
PLOT = Path(__file__).resolve().with_name("growth.svg")


def write(results: dict[str, Any], target: Path, plot: Path = PLOT) -> None:
    """Write the page, and the plot if growth was measured."""
    parts = [INTRODUCTION, *_not_measured(results)]
    for name, (title, text, table) in PAGES.items():
        held = [results[key] for key in KEYS.get(name, (name,)) if key in results]
        if held:
            rows = [row for one in held for row in one["rows"]]
            parts += [f"## {title}", text, table(rows), *_origins(held)]
    if "growth" in results:
        import growth

        growth.draw(results["growth"]["rows"], plot)
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _not_measured(results: dict[str, Any]) -> list[str]:
    """Return a sentence with the GPU sections without results and the command that measures them; else nothing."""
    missing = [name for name in GPU_SECTIONS if not any(key in results for key in KEYS.get(name, (name,)))]
    titles = ", ".join(f'"{PAGES[name][0]}"' for name in missing)
    command = f"tools/bench/bench.sh --only {' '.join(missing)}"
    return [f"Not measured yet, because a GPU is needed: {titles} (`{command}`)."] if missing else []


def _origins(held: Sequence[dict[str, Any]]) -> list[str]:
    """Return command, commit and machine of the rows of a table, each different one once."""
    loads: dict[str, list[float]] = {}
    for one in (row.get("origin", section) for section in held for row in section.get("rows", [{}])):
        machine = one["machine"]
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        origin = (
            f"`{one['command']}`, commit {one['commit']}, {machine['processor']}{gpu}, {machine['threads']} of "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB, torch {machine['torch']}, "
            f"Python {machine['python']}"
        )
        loads.setdefault(origin, []).extend(machine["load"][:1])
    return [origin + _load(numbers) + "." for origin, numbers in loads.items()]


def _load(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    return f", load {spread} at the start"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table. The first ``left`` columns are aligned left, the others right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def _times(time: dict[str, float]) -> list[str]:
    """Return the cells of a time: plain and ours in seconds, and the ratio with its range over the rounds."""
    spread = f" ({time['low']:.3g} to {time['high']:.3g})" if time["low"] != time["high"] else ""
    return [f"{time[PLAIN]:.3g}", f"{time[OURS]:.3g}", f"**{time['ratio']:.3g}**{spread}"]


def _peaks(peak: dict[str, float]) -> list[str]:
    """Return the cells of a peak memory: plain and ours in MB, and the ratio."""
    return [*(f"{peak[kind] / 1e6:,.0f}" for kind in (PLAIN, OURS)), f"**{peak[PLAIN] / peak[OURS]:.3g}**"]


def _target(text: str, least: float, found: Sequence[tuple[str, float]]) -> str:
    """Return a line with the target of a ratio, the measured values by label, and whether the target is met."""
    met = [label for label, value in found if value >= least]
    missed = [label for label, value in found if value < least]
    verdict = "met" if not missed else f"met for {', '.join(met)}, not for {', '.join(missed)}" if met else "not met"
    numbers = ", ".join(f"{label} {value:.3g}" for label, value in found)
    return f"Target: {text} at least {least:g} times. Measured: {numbers}; **{verdict}**."


def _heads(rows: Rows) -> str:
    lines, notes = [], []
    for row in rows:
        if "left_out" in row:
            lines.append([row["shape"], row["head"], f"{row['batch']}", *SKIPPED])
            notes.append(f"Skipped: {row['shape']} {row['head']}, batch {row['batch']}; {row['left_out']}.")
            continue
        size = f"{row['batch']}{_by_fit(row)}"
        lines.append([row["shape"], row["head"], size, *_times(row["time"]), *_peaks(row["peak"])])
    judged = [row for row in rows if (row["shape"], row["head"]) == ("base", "cascaded") and "left_out" not in row]
    if judged:
        labels = [f"batch {row['batch']}{_by_fit(row)}" for row in judged]
        times = [row["time"]["ratio"] for row in judged]
        peaks = [row["peak"][PLAIN] / row["peak"][OURS] for row in judged]
        notes.append(_target("a cascaded step at Base size is faster by", 10, list(zip(labels, times))))
        notes.append(_target("its peak memory is lower by", 20, list(zip(labels, peaks))))
    return "\n\n".join([_table(["size", "head", "batch", *STEP_COLUMNS], lines, left=2), *notes])


def _by_fit(row: dict[str, Any]) -> str:
    """Return the note for values of a row that were fitted and not measured."""
    if "fit" not in row:
        return ""
    return " (both by fit)" if f"time {OURS}" in row["fit"] else " (plain by fit)"


def _online(rows: Rows) -> str:
    """Return the table of steps with the speech encoder, and the reasons of those that were skipped."""
    lines, notes = [], []
    for row in rows:
        kind = [row["shape"], row["head"], row["precision"], row["case"], f"{row['batch']}"]
        if "left_out" in row:
            lines.append([*kind, *SKIPPED])
            reason = row["left_out"].rstrip(".")
            notes.append(f"Skipped: {' '.join(kind[:3])}, batch {row['batch']}; {reason}.")
        else:
            lines.append([*kind, *_times(row["time"]), *_peaks(row["peak"])])
    table = _table(["size", "head", "precision", "comparison", "batch", *STEP_COLUMNS], lines, left=4)
    return "\n\n".join([table, *notes])


def _epoch(rows: Rows) -> str:
    lines = [[r["shape"], r["head"], f"{r['utterances']}", f"{r['batch']}", *_times(r["time"])] for r in rows]
    table = _table(["size", "head", "utterances", "batch", "plain, s", "ours, s", "ratio"], lines, left=2)
    return table + "\n\n" + _target("an epoch is faster by", 20, [(row["head"], row["time"]["ratio"]) for row in rows])


def _extraction(rows: Rows) -> str:
    lines, notes = [], []
    for row in rows:
        if row["case"] in ("parts", "batches", "threads", "compiled"):
            continue
        where = f"{row['device']} {row['precision']}"
        if "failed" in row:
            reason = row["failed"].replace("|", "/")
            lines.append([row["shape"], where, f"{row['case']}: not compiled, {reason}", *["-"] * 3])
            continue
        if row["case"] == "limit":
            notes.append(
                f"Speed of HuBERT {row['shape'].capitalize()}: plain {row[PLAIN]:.0f} GFLOP/s, ours "
                f"{row[OURS]:.0f} GFLOP/s; the machine's fastest single-precision matrix product reaches "
                f"{row['limit']:.0f}: {100 * row[OURS] / row['limit']:.0f}% of it."
            )
            continue
        if row["case"] == "corpus":
            share = row["padding"]
            notes.append(
                f"{row['utterances']} utterances, {row['speech']:.0f} s of speech ({where}), "
                f"{row['speech'] / row['time'][OURS]:.1f} times real time with our encoder. Padding: "
                f"{100 * share[PLAIN]:.0f}% in corpus order, {100 * share[OURS]:.0f}% in buckets."
            )
            if row["device"] == "cpu":
                notes.append(_target("a corpus on a CPU is faster by", 1.5, [(row["shape"], row["time"]["ratio"])]))
        lines.append([row["shape"], where, row["case"], *_times(row["time"])])
    table = _table(["size", "device", "comparison", "before, s", "after, s", "ratio"], lines, left=3)
    parts = [[row["part"], *_times(row["time"])] for row in rows if row["case"] == "parts"]
    if parts:
        notes += [
            "Parts of the encoder, 16 s of speech in a batch of 4: transformers' modules (before) and ours (after).",
            _table(["part", "before, s", "after, s", "ratio"], parts),
        ]
    sizes = [row for row in rows if row["case"] == "batches"]
    if sizes:
        best = min(row["ours"] for row in sizes)
        shown = ", ".join(f"{row['seconds']:g} s {row['ours'] / best:.2f}" for row in sizes)
        notes.append(f"Relative time by the seconds of speech in a batch (1 is the best): {shown}.")
    return "\n\n".join([table, *notes, *_gpu_target(rows), *_threads(rows), *_compiled(rows)])


def _gpu_target(rows: Rows) -> list[str]:
    """Return the line with the target for a corpus on a GPU, over all precisions, compiled and not, and build times."""
    names = {"corpus": "", COMPILED: " compiled"}
    judged = [row for row in rows if row.get("device") == "cuda" and row["case"] in names and "time" in row]
    labels = [f"{row['shape']} {row['precision']}{names[row['case']]}" for row in judged]
    built = [f"{label} {row['build']:.0f} s" for label, row in zip(labels, judged) if "build" in row]
    ratios = [row["time"]["ratio"] for row in judged]
    notes = [f"First pass over the corpus, compiling included: {', '.join(built)}."] if built else []
    if judged:
        notes.append(_target("a corpus on a GPU is faster by", GPU_CORPUS_RATIO, list(zip(labels, ratios))))
    return notes


def _threads(rows: Rows) -> list[str]:
    lines = [
        [f"{row['threads']}", *(f"{row['clock'][kind]:.3g}" for kind in (PLAIN, OURS)),
         f"**{row['clock'][PLAIN] / row['clock'][OURS]:.3g}**"]
        for row in rows if row["case"] == "threads"
    ]  # fmt: skip
    text = "Wall time of a part of the corpus by threads; other processes make it longer:"
    return [text, _table(["threads", "before, s", "after, s", "ratio"], lines, left=0)] if lines else []


def _compiled(rows: Rows) -> list[str]:
    """Return the table of torch.compile on the layers of both encoders."""
    lines = []
    for row in (row for row in rows if row["case"] == "compiled"):
        whose = {PLAIN: "transformers'", OURS: "ours"}[row["layers"]]
        if "failed" in row:
            reason = row["failed"].replace("|", "/")
            lines.append([f"{whose}: not compiled, {reason}", *["-"] * 4])
        else:
            lines.append([whose, *_times(row["time"]), f"{row['build']:.0f}"])
    text = "torch.compile of the layers with one fixed shape, 16 s of speech; the last column is the time to compile:"
    head = ["layers", "not compiled, s", "compiled, s", "ratio", "compiling, s"]
    return [text, _table(head, lines)] if lines else []


def _scoring(rows: Rows) -> str:
    lines = [[r["case"], f"{r['utterances']:,} x {r['images']:,}", *_times(r["time"])] for r in rows]
    table = _table(["from", "utterances x images", "plain, s", "ours, s", "ratio"], lines)
    judged = [("from scores", row["time"]["ratio"]) for row in rows if row["case"] == "scores"]
    return f"{table}\n\n{_target('scoring from the scores is faster by', 30, judged)}"


def _store(rows: Rows) -> str:
    lines = []
    for row in rows:
        disk = [f"{row['megabytes'][kind]:.0f}" for kind in (PLAIN, OURS)]
        lines.append([row["shape"], f"{row['utterances']}", *_times(row["time"]), *disk])
    return _table(["size", "utterances", "plain, s", "ours, s", "ratio", "plain, MB", "ours, MB"], lines)


def _startup(rows: Rows) -> str:
    lines = [
        [f"`{row['command']}`", f"{row['processor']:.2f}", f"{row['clock']:.2f}", f"{row['ratio']:.1f}"]
        for row in rows[1:]
    ]
    heavy = f"{rows[0]['command']}: {rows[0]['processor']:.2f} s of CPU time. The ratios are relative to it."
    slow = [f"`{row['command']}` {row['clock']:.2f} s" for row in rows[1:] if row["clock"] >= HELP_SECONDS]
    verdict = f"not met by {', '.join(slow)}" if slow else "met by all"
    target = (
        f"Target: under {HELP_SECONDS} s of wall time; **{verdict}**. Wall time includes waiting on a busy machine; "
        f"the CPU time is at most {max(row['processor'] for row in rows[1:]):.2f} s."
    )
    return "\n\n".join([_table(["command", "CPU, s", "wall, s", "ratio"], lines), heavy, target])


def _mini(rows: Rows) -> str:
    stages = [row for row in rows if "stage" in row]
    lines = [
        [f"{row['stage']} ({row['name']})", row["run"], f"{row['seconds']}", f"{100 * row['share']:.0f}%"]
        for row in stages
    ]
    table = _table(["stage", "run", "seconds", "share"], lines, left=2)
    found = next((row["extraction"] for row in rows if "extraction" in row), None)
    if found is None:
        return table
    text = f"{found['hours']:.1f} h of speech in {found['seconds']} s: {found['real_time']:.0f} times real time"
    return f"{table}\n\nHidden states of {text}."


def _growth(rows: Rows) -> str:
    lines = []
    for row in rows:
        sizes = f"{row['sizes'][0]:,} to {row['sizes'][-1]:,}"
        fits = [f"{row['fit'][kind]['exponent']:.2f} ({row['fit'][kind]['r2']:.3f})" for kind in (PLAIN, OURS)]
        lines.append([row["cost"], row["of"], sizes, *fits])
    table = _table(["cost", "grows with", "sizes", "plain: exponent (r2)", "ours: exponent (r2)"], lines, left=2)
    return f"{table}\n\n![growth of each cost](tools/bench/growth.svg)"


def _engines(rows: Rows) -> str:
    """Return the table of vector engines, of the fastest setting that reaches the recall."""
    lines, missed = [], []
    for row in rows:
        name = ENGINE_NAMES[row["engine"]]
        if "settings" not in row:
            lines.append([name, f"{row['count']:,}", f"stopped after {row['limit_s']:.0f} s", *["-"] * 8])
            missed.append(f"{name} {row['count']:,}")
            continue
        best = row["settings"][-1]
        if best["recall"] < RECALL:
            missed.append(f"{name} {row['count']:,}")
        lines.append([
            name, f"{row['count']:,}", f"{best['recall']:.3f}", f"{best['cpu_ms']:.2f}", f"{best['median_ms']:.1f}",
            f"{row['search_gb']:.2f}", f"{row['search_mapped_gb']:.2f}" if "search_mapped_gb" in row else "-",
            f"{row['disk_gb']:.2f}", f"{row['build_cpu_s']:.0f}", f"{row['build_gb']:.2f}",
            f"{row['add_cpu_s']:.1f}" if "add_cpu_s" in row else "-",
        ])  # fmt: skip
    head = ["engine", "vectors", "recall@10", "CPU, ms", "wall, ms", "own memory, GB", "mapped, GB", "disk, GB"]
    table = _table([*head, "build, CPU s", "build, GB", "add 1,000, CPU s"], lines)
    verdict = f"not reached by {', '.join(missed)}" if missed else "reached by all"
    return f"{table}\n\nTarget: recall@10 of at least {RECALL}; **{verdict}**."


def _scale(rows: Rows) -> str:
    """Return the table of large indexes: for each, the setting with the fewest lists that reaches the recall."""
    lines = []
    for row in rows:
        reached = [one for one in row["settings"] if one["recall"] >= RECALL]
        best = min(reached, key=lambda one: one["probes"]) if reached else row["settings"][-1]
        lines.append([
            f"{row['count']:,}", f"{row['lists']:,}", f"{best['probes']}", f"{best['recall']:.3f}",
            f"{best['cpu_ms']:.1f}", f"{best['median_ms']:.1f}", f"{best['p95_ms']:.1f}", f"{row['computed']:.0f}",
            f"{row['seconds']:.0f}", f"{row['own']:.2f}", f"{row['resident']:.2f}", f"{row['search_own']:.2f}",
            f"{row['search_own'] + row['search_mapped']:.2f}", f"{row['search_disk']:.1f}", f"{row['search_open']:.0f}",
            f"{row['group_gb']:.2f} of {row['limit_gb']:g}" if row.get("limit_gb") else "-",
        ])  # fmt: skip
    head = ["vectors", "lists", "searched", "recall@10", "CPU, ms", "wall, ms", "95%, ms", "build, CPU s", "build, s"]
    head += ["build: own, GB", "resident, GB", "search: own, GB", "with mapped, GB", "disk, GB", "open, s"]
    return _table([*head, "everything, GB"], lines)


def _load_test(rows: Rows) -> str:
    lines = [
        [
            f"{row['number']:,}, {row['parallel']} at a time", f"{row['answered']} of {row['good']}",
            f"{row['refused']}", f"{row['number'] - row['good']}, {len(row['wrong'])} wrong",
            f"{row['median_ms']:.0f}", f"{row['p95_ms']:.0f}", f"{row['longest_ms']:.0f}",
            f"{row['memory_mb'][0]:.0f} to {max(row['memory_mb']):.0f}", f"{row['tracebacks']}",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["requests", "good ones answered", "sent again after 503", "malformed ones", "median, ms", "95%, ms"]
    return _table([*head, "longest, ms", "memory of the server, MB", "tracebacks"], lines)


def _pictures(rows: Rows) -> str:
    lines = [
        [row["run"], f"{row['known']:,}", *(f"{row[key]:.0f}" if key in row else "-" for key in ("seconds", "cpu"))]
        for row in rows
    ]
    return _table(["run", "files that were known", "wall, s", "CPU, s"], lines)


RECALL = 0.95  # target of recall@10
ENGINE_NAMES = {
    "ours": "ours (inverted file, 8 bits, ranked again)",
    "faiss_rabitq": "faiss inverted file, RaBitQ, ranked again",
    "faiss_hnsw": "faiss HNSW with ids, 8 bits",
    "usearch": "usearch HNSW with ids, 8 bits",
    "lancedb_ivf": "LanceDB IVF_RQ, ranked again",
    "lancedb_hnsw": "LanceDB IVF_HNSW_SQ, ranked again",
}

INTRODUCTION = """# Benchmarks

Every ratio compares a plain baseline with this project. Both run in turn, in one run, on one machine, with `make bench`
(`tools/bench/bench.sh --help` lists the sections). Numbers without a ratio (the mini recipe, GFLOP/s, compile times)
hold only for the machine named below them. `tools/bench/bench.sh --document BENCHMARKS.md` writes this page from
`tools/bench/results.json`.

* The baselines (`tools/bench/plain.py`) compute the published method directly: attention at every position, the cosines
  of each keyword over a broadcast vocabulary, a one-hot times all subword embeddings, the text transformer over all 77
  positions, the image tower in every step, scores by sorting, s3prl's HuBERT on padded batches in corpus order. They
  use the parameters of this project and give equal losses, recalls and hidden states (`test/tools/test_bench.py`).
* Times on a CPU are CPU seconds, because a busy machine changes them little. A ratio is the median of the rounds, with
  the lowest and highest in brackets.
* Peak memory is the peak of a new process less its memory before the step, after the models are loaded. Since commit
  aac409a2b072 the process returns freed blocks at once. glibc's default keeps up to 200 MB of them.
* The peak of the plain cascaded step at Base size was compared with a copy of the authors' modules, written from their
  public code for this comparison and not part of this project: 850 and 882 MB at batch 4 with freed blocks returned;
  1,019 and 1,049 MB at batch 4, 2,008 and 2,074 MB at batch 8 with glibc's default. The baseline needs 0.97 of the
  memory of the copy.
* Models have the published sizes and random weights. Lengths of utterances are log-normal, mean 4 s, 1 to 15 s, seed 0.
* A line below a table shows the target and whether it is met.
* CI runs `make bench-check`: ratios of small runs must not fall below `tools/bench/floors.json`, which leaves room for
  a busy machine."""

# the keys of the results that a section of the page shows, if they differ from its name
ENGINE_COUNTS = (20_000, 100_000, 1_000_000, 2_000_000, 4_000_000, 10_000_000)  # vectors
KEYS = {
    "online_cuda": tuple(f"online_cuda_{shape}" for shape in SHAPES),
    "heads": tuple(f"heads_{shape}_{head}" for shape in SHAPES for head in HEADS),
    "search_engines": tuple(f"search_engines_{count}" for count in ENGINE_COUNTS),
    "search_scale": tuple(f"search_scale_{count}" for count in ENGINE_COUNTS),
}


def _rerank(rows: Rows) -> str:
    head = ["images", "K", "threads", "encode, s", "coarse, s", "fine, s", "whole query, s"]
    keys = ("encode", "coarse", "fine", "total")
    body = [
        [f"{row['images']:,}", f"{row['top_k']}", f"{row['threads']}", *(f"{row[key]:.3g}" for key in keys)]
        for row in rows
    ]
    met = all(row["total"] < RERANK_SECONDS for row in rows)
    return _table(head, body) + f"\n\nTarget: under {RERANK_SECONDS:g} s for a query, {'met' if met else 'not met'}."


def _fine_scores(rows: Rows) -> str:
    speed = [row for row in rows if row["kind"] == "speed"]
    body = [
        [row["model"], f"{row['pairs']}", *(f"{row['rates'][kind]:,.0f}" for kind in ("plain", "ours")),
         f"{row['time']['ratio']:.1f}"]
        for row in speed
    ]  # fmt: skip
    table = _table(["model", "pairs", "plain, pairs/s", "ours, pairs/s", "ratio"], body)
    small = [row for row in speed if "mini" in row["model"]]
    found = [(row["model"], row["time"]["ratio"]) for row in small]
    verdict = _target("pairs per second at mini size, more than a plain loop by", FINE_RATIO, found)
    memory = [row for row in rows if row["kind"] == "memory"]
    return "\n\n".join([table, verdict, MEMORY_TEXT, _memory(memory)])


def _memory(rows: Rows) -> str:
    import measure

    plain = [row for row in rows if not row["dropout"]]
    blocks = sorted((row for row in plain if row["block"]), key=lambda row: row["block"])
    others = [row for row in plain if not row["block"]] + [row for row in rows if row["dropout"]]
    body = [
        [f"{row['batch']}", f"{row['block']}" if row["block"] else "all pairs, kept", f"{row['dropout']:g}",
         *(f"{row[key] / 2**30:.2f}" for key in ("held", "towers", "peak"))]
        for row in (*blocks, *others)
    ]  # fmt: skip
    line = measure.fit_line([row["block"] for row in blocks], [row["scores"] for row in blocks])
    straight = np.corrcoef([row["block"] for row in blocks], [row["scores"] for row in blocks])[0, 1]
    fits = max(row["peak"] for row in blocks) < GPU_GIB * 2**30
    head = ["batch", "pairs in a block", "dropout", "before the step, GiB", "both towers, GiB", "peak, GiB"]
    return _table(head, body) + (
        f"\n\nThe fine scores alone (forward and backward, towers left out) need {line['start'] / 2**20:.0f} MiB plus "
        f"{line['slope'] / 2**20:.1f} MiB for each pair of a block (correlation {straight:.4f}). "
        f"Target: batch {rows[0]['batch']} fits a GPU of {GPU_GIB} GB, {'met' if fits else 'not met'}."
    )


PAGES: dict[str, tuple[str, str, Callable[[Rows], str]]] = {
    "heads": (
        "A training step",
        "From hidden states to Adam's update. 8,112 subwords, utterances of 4 s. At batch size 256, cascaded plain "
        'steps would need tens to hundreds of GB. There, "by fit" is the line a + b x batch through the smaller sizes; '
        "the other values of the row are measured.",
        _heads,
    ),
    "epoch": (
        "A training epoch",
        "Plain: s3prl's HuBERT and the image tower in every step. Ours: hidden states from disk and cached image "
        "embeddings. Utterances are cropped to 6.4 s in both, as in training.",
        _epoch,
    ),
    "extraction": (
        "Hidden states of a corpus",
        "corpus: s3prl's HuBERT on padded batches of 16 in corpus order, our encoder on batches of similar length. "
        "same batches: both encoders in corpus order. bucketing: our encoder in corpus order and in length buckets.",
        _extraction,
    ),
    "extraction_cuda": (
        "Hidden states of a corpus on a GPU",
        "Wall time. bf16 uses autocast around both encoders. compiled corpus: s3prl's HuBERT as in corpus, our encoder "
        "in length buckets with torch.compile on its convolutions and layers.",
        _extraction,
    ),
    "online_cuda": (
        "A training step with the speech encoder on a GPU",
        "From waveforms to Adam's update, with the frozen encoder in the step (`--feats online`). Utterances are "
        "cropped to 6.4 s. step: s3prl's HuBERT on the padded batch, the image tower and the plain head (plain), our "
        "encoder on groups of 64 utterances of similar length and cached image embeddings (ours). same images: the "
        "plain step has the cached embeddings, too. Wall time. bf16 uses autocast around both steps. Peak memory is "
        "that of the tensors on the GPU, less that before the step.",
        _online,
    ),
    "scoring": (
        "Retrieval scores",
        "Recall in both directions. 'scores': both start from the matrix [utterances, images]. 'embeddings': both "
        "compute the matrix, plain once as a whole, ours once per direction in blocks. The product dominates there.",
        _scoring,
    ),
    "store": (
        "Reading hidden states at random",
        "Every utterance once in a random order, at most 6.4 s of it, against `torch.load` of one file per utterance. "
        "All files are in the page cache.",
        _store,
    ),
    "startup": ("Start-up", "The time of `--help`.", _startup),
    "search_engines": (
        "Vector engines",
        "An index of 512-dimensional vectors: 976 real embeddings of CLIP ViT-B/32, interpolated and perturbed. "
        "The queries are made of a tenth of the embeddings that is not in the index. Each row is the fastest "
        "setting that reaches the recall, or the slowest measured one. Own memory is that of the searching "
        "process alone; the resident pages of mapped files come on top, and the system takes them back when "
        "another process needs memory. To add 1,000 vectors includes writing the index. At one million vectors "
        "RaBitQ has 4 bits per dimension and usearch ranks a shortlist of 50 again; in the smaller tables RaBitQ "
        "has 1 bit and usearch does not rank again. Wall time includes waiting on a busy machine. LanceDB and "
        "usearch are not dependencies.\n\n"
        "Decision: the index keeps its own files around faiss's inverted file. At one million vectors only "
        "inverted files reach the recall. Ours needs 2.1 ms of CPU time and 0.1 GB of own memory for a search, "
        "RaBitQ 3.1 ms and 0.3 GB, LanceDB 9.9 ms and 0.2 GB. LanceDB alone takes more than the target of 20 ms "
        "of wall time here. Our build needs the least CPU time (54 s). The graphs (HNSW with 16 neighbours per "
        "vector, 80 candidates while building) do not reach the recall: faiss finds 0.876 with 2,048 candidates "
        "per query, and usearch 0.665 with 256, the largest number that was measured for it. Their builds need 4 "
        "and 6 times as much CPU time. Graphs add 1,000 vectors faster than our files do (2 and 6 s against 9 s), "
        "LanceDB slower (42 s). At 20,000 vectors all engines but usearch without ranking reach the recall in a "
        "few milliseconds, which do not matter next to the time to encode a query. A folder that is replaced by "
        "one rename gives what a database would add here: the old index stays until the new one is complete, and "
        "readers see one of both. LanceDB's IVF_HNSW_SQ was not measured at one million vectors. What our files "
        "do not have are object stores and several machines: LanceDB remains the choice there.",
        _engines,
    ),
    "search_scale": (
        "Indexes of millions of vectors",
        "The vectors of the table above, made block by block, with seeds of their own. Each row is the smallest "
        "number of searched lists, of those that were measured, that reaches a recall@10 of 0.95. Queries are "
        "sent one at a time and do not include the encoding of speech. `speechclip index` writes vectors and "
        "lists block by block, and a search maps both files into memory. Own memory belongs to the process alone. "
        "The pages of mapped files come on top, and the system takes them back when another process needs memory. "
        "Where a limit is given, a control group of Linux counts own memory, mapped files and cached files of the "
        "build and of the searches together, and the kernel stops a process that needs more. To open an index "
        "includes its checksums.\n\n"
        "With twice the vectors, the CPU time of the build grows 2.2 times, that of a query 1.5 times, and the "
        "own memory of the build 1.3 times: the sample of k-means grows with the square root, and the ids grow "
        "linearly. Wall times, most of all of the first three rows, are those of a machine that was shared by many "
        "processes. At ten million vectors the control group reaches its limit: files of 15.6 GB do not fit into 8 GB, "
        "and the system gives back pages that no search has read lately.",
        _scale,
    ),
    "search_load": (
        "The search server under load",
        "One third of the requests is malformed in 16 ways. Meanwhile 1,000 idle connections and 60 unfinished uploads "
        "are held, and opened again when the server closes them. The memory is resident, during the run.",
        _load_test,
    ),
    "search_pictures": (
        "An index of 10,000 pictures",
        "Killed with SIGKILL at several moments, resumed, and updated. After every kill the index was the old one, or "
        "missing if there was none. Another index of the same pictures, made without kills, has the same ids and "
        "thumbnails, and embeddings that differ by at most 4e-8.",
        _pictures,
    ),
    "mini": ("The mini recipe", "`./run.sh` without options: wall time.", _mini),
    "growth": (
        "Growth",
        "Seconds = coefficient x size ^ exponent, fitted to the logarithms. Costs that do not grow lower the exponent.",
        _growth,
    ),
    "rerank": (
        "A query with a reranker",
        "One recording of 3 s at the size of the mini recipe: the speech encoder, the coarse scores of all images, and "
        "the fine scores of the best K. CPU seconds of all threads, the median of the queries. The images are encoded "
        "before.",
        _rerank,
    ),
    "fine_scores": (
        "Fine scores of pairs",
        "The scores of cross-modal layers. Plain: a loop that scores one pair at a time, without padding. Ours: the "
        "same pairs in blocks. Both start from the encoded speech and images.",
        _fine_scores,
    ),
}  # fmt: skip

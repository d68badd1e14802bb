"""The sections of the benchmarks, and the sizes and heads that they measure."""

SHAPES = ("base", "large")
HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
SECTIONS = (
    "heads",
    "epoch",
    "extraction",
    "extraction_cuda",
    "scoring",
    "store",
    "startup",
    "mini",
    "growth",
    "rerank",
    "fine_scores",
)

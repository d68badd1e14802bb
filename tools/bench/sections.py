"""The sections of the benchmarks, and the sizes and heads that they measure."""

SHAPES = ("base", "large")
PRECISIONS = ("fp32", "bf16")
HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
ONLINE_HEADS = ("parallel", "cascaded")  # of online_cuda, where the encoder takes most of the time
ONLINE_BATCHES = (64, 256)  # 256 is the published batch
SECTIONS = (
    "heads",
    "epoch",
    "extraction",
    "extraction_cuda",
    "online_cuda",
    "scoring",
    "store",
    "startup",
    "mini",
    "growth",
    "rerank",
    "fine_scores",
)
COMPILED = "compiled corpus"  # a case of extraction_cuda
GPU_SECTIONS = ("extraction_cuda", "online_cuda")

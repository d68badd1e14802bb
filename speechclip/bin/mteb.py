"""``speechclip mteb``: score a model on tasks of mteb, the Massive Text Embedding Benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Score a model on tasks of mteb, or on a data directory, and write results in mteb's format."""
    parser = ArgumentParser(prog="speechclip mteb", description=main.__doc__)
    parser.add_argument("--model", required=True, help="checkpoint folder, .ckpt file, published name or hub id")
    parser.add_argument("--tasks", default="", metavar="TASK,...", help="tasks of mteb, such as SpokenCOCOA2IRetrieval")
    parser.add_argument("--data", default="", metavar="DIR", help="data directory of a recipe, as two tasks")
    parser.add_argument("--out", default="mteb", metavar="DIR", help="folder of the results")
    parser.add_argument("--reranker", default="", help="checkpoint of a reranker: scores the best documents again")
    parser.add_argument("--top_k", type=int, default=100, help="number of documents for the reranker")
    parser.add_argument("--name", default="", metavar="OWNER/NAME", help="name of the model in the results")
    parser.add_argument("--trained_on", default="", help="training corpus: that of a recipe, mini or none")
    parser.add_argument("--meta", default="", metavar="FILE.json", help="fields of mteb's ModelMeta to add or replace")
    parser.add_argument("--branch", choices=("parallel", "cascaded"), default=None, help="branch of a hybrid model")
    parser.add_argument("--batch_size", type=int, default=32, help="items that are loaded at a time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model")
    parser.add_argument("--overwrite", action="store_true", help="run tasks that have a result of this model, too")
    args = parser.parse_args(argv)
    names = [name for name in args.tasks.split(",") if name]
    if not names and not args.data:
        parser.error("--tasks or --data is needed")
    if min(args.batch_size, args.top_k) < 1:
        parser.error("--batch_size and --top_k must be at least 1")

    import importlib.util
    import sys
    from pathlib import Path

    from speechclip.common.errors import UserError
    from speechclip.common.files import check_folder, read_json

    if importlib.util.find_spec("mteb") is None:
        raise UserError('mteb: is not installed. Run tools/install.sh --extras "mteb".')
    from speechclip.benchmarks.mteb import load_encoder, load_reranker
    from speechclip.benchmarks.mteb_run import SCORES, evaluate
    from speechclip.benchmarks.mteb_tasks import data_dir_tasks, named_tasks

    check_folder(Path(args.out))
    changes = read_json(Path(args.meta)) if args.meta else {}
    tasks = named_tasks(names) + (data_dir_tasks(args.data) if args.data else [])
    device = None if args.device == "auto" else args.device
    settings = {"trained_on": args.trained_on, "changes": changes}
    encoder = load_encoder(args.name, device=device, path=args.model, branch=args.branch, **settings)
    reranker = load_reranker(args.reranker, device, **settings) if args.reranker else None
    width = max(len(task.metadata.name) for task in tasks)
    print(f"{'':{width}}  " + "  ".join(f"{name:>14}" for name in SCORES), flush=True)
    for row in evaluate(
        encoder, tasks, Path(args.out), reranker=reranker, top_k=args.top_k, batch_size=args.batch_size,
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    ):  # fmt: skip
        values = (f"{100 * row.scores[name]:14.2f}" if name in row.scores else f"{'-':>14}" for name in SCORES)
        print(f"{row.task:{width}}  " + "  ".join(values) + f"  {row.path}", flush=True)


if __name__ == "__main__":
    main()

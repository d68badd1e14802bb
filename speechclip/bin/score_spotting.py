"""Score keyword spotting, after stage 4: precision at 10 and at N, equal error rate and average precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser, parse_with_overrides
from speechclip.config import EvalConfig, known_keys


@stage_script
def main() -> None:
    """Rank the utterances for written and spoken keywords and for those that the head finds. Write spotting.json."""
    parser = ArgumentParser(prog="speechclip.bin.score_spotting", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory; its utt2keywords has the semantic labels")
    parser.add_argument("--dump_dir", required=True, help="folder with the stored features of the data")
    parser.add_argument("--out", required=True, help="folder of the scores")
    parser.add_argument("--keywords", default="", metavar="FILE", help="keywords; without it, those of utt2keywords")
    parser.add_argument("--spoken_from", default="", metavar="DIR", help="data directory with ctm: spoken keywords")
    parser.add_argument("--examples", type=int, default=10, help="spoken examples of each keyword")
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    import numpy as np
    import torch

    from speechclip.common.constants import SPOTTING
    from speechclip.common.errors import UserError
    from speechclip.common.files import check_folder, write_json
    from speechclip.data.alignments import find_alignments, load_alignments
    from speechclip.data.kaldi import KEYWORD_TABLE, DataDir
    from speechclip.data.spoken_keywords import SpokenExamples, read_keyword_list, read_keyword_table
    from speechclip.eval.setup import load_for_scoring, result_provenance
    from speechclip.eval.spotting import attention_scores, spotting_labels, spotting_report
    from speechclip.model.inference import embed_branches, find_keywords

    out, table = Path(options.out), Path(options.data_dir) / KEYWORD_TABLE
    check_folder(out)
    given = read_keyword_table(table) if table.exists() or not options.keywords else None
    if options.keywords:
        words = read_keyword_list(Path(options.keywords))
    else:
        words = sorted(set().union(*(given or {}).values()))
    model, config, split, source = load_for_scoring(
        options.checkpoint, options.data_dir, options.dump_dir, overrides, with_encoders=True
    )
    if model.clip is None:
        raise UserError(f"{options.checkpoint}: has no CLIP for written keywords. Train with --clip.")
    rows = [at for at, item in enumerate(split.ids) if given is None or item in given]
    if not rows and config.eval.languages:
        print(f"{table}: has no utterance in the scored languages. Keyword spotting is skipped.")
        return
    if not rows:
        raise UserError(f"{table}: none of its utterances is in {options.data_dir}. Run stage 1 again.")
    size = config.data.eval_batch_size
    speech = next(iter(embed_branches(model, source, size).values()))[rows]
    with torch.no_grad():
        written = model.clip.encode_texts(words).cpu().numpy()
    scores: dict[str, tuple[list[str], Any]] = {"written": (words, speech @ written.T)}
    aligned = find_alignments(options.spoken_from) if options.spoken_from else None
    if aligned:
        data = DataDir.load(options.spoken_from)
        alignments = load_alignments(aligned, [utterance.id for utterance in data.utterances])
        examples = SpokenExamples(data, alignments, words, options.examples)
        if len(examples.owner):
            spoken = next(iter(embed_branches(model, examples, size).values()))
            kept = np.unique(examples.owner)
            queries = np.stack([spoken[examples.owner == at].mean(axis=0) for at in kept])
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            scores["spoken"] = [words[at] for at in kept], speech @ queries.T
    if model.head.has_keywords:
        found = find_keywords(model, source, size)
        table_of = model.clip.subword_embeddings
        subwords = {word: table_of[model.clip.tokenizer.encode(word)].detach().float().cpu().numpy() for word in words}
        scores["attention"] = words, attention_scores(found.vectors[rows], found.mask[rows], subwords)[0]

    captions = [split.data.utterances[at].text for at in rows]
    sets = {"exact": None} | ({"semantic": [given[split.ids[at]] for at in rows]} if given else {})
    report: dict[str, Any] = {}
    print(f"{'':22}{'P@10':>7}{'P@N':>7}{'EER':>7}{'AP':>7}  keywords")
    for name, (queries_of, values) in scores.items():
        report[name] = {}
        for kind, fitting in sets.items():
            labels = spotting_labels(captions, queries_of, fitting)
            try:
                row = spotting_report(values, labels, queries_of, config.eval.bootstrap)
            except ValueError as error:
                raise UserError(f"{options.data_dir}: {error}. Use other keywords.") from error
            report[name][kind] = row
            for title, part in ((f"{name}, {kind}", row), ("  chance", row["chance"])):
                numbers = "".join(f"{part[key]:7.1f}" for key in ("P@10", "P@N", "EER", "AP"))
                print(f"{title:22}{numbers}  {row['n_keywords']}")
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir, config)
    write_json(out / SPOTTING, report)
    print(f"{out / SPOTTING} written")


if __name__ == "__main__":
    main()

"""Readers and writers of every file in the ``scores/`` folder of a run. Each file is replaced as a whole.

retrieval.json                  scores of every retrieval direction
speech_embeddings[_BRANCH].npz  embeddings of the utterances
image_embeddings.npz            embeddings of the images, of a head with an image tower of its own
ranks.npz                       rank and image of every query, for paired tests
keywords.json                   scores of the keywords
keywords.jsonl                  one line for each keyword
keywords.npz                    what each utterance adds to the keyword scores, for paired tests
attention.npz                   attention of the keywords over the frames of the first utterances
spotting.json                   scores of keyword spotting
conditions.json                 scores under listening conditions, and paired tests
conditions.npz                  rank and image of every query in every condition
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import CONDITIONS, KEYWORDS, RETRIEVAL
from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import read_json, replacing, write_json
from speechclip.data.embeddings import load_embeddings, read_arrays, save_embeddings
from speechclip.eval.coarse_to_fine import REORDERED, stage_tests
from speechclip.eval.contributions import paired_keyword_tests
from speechclip.eval.significance import paired_test

RANKS, SPEECH, IMAGES = "ranks.npz", "speech_embeddings.npz", "image_embeddings.npz"
CONDITION_RANKS = "conditions.npz"
KEYWORD_LINES, CONTRIBUTIONS, ATTENTION = "keywords.jsonl", "keywords.npz", "attention.npz"

Floats = NDArray[np.floating[Any]]
Ranks = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]  # by direction: rank and image of every query
Record = dict[str, Any]


def write_retrieval(
    folder: Path, report: Mapping[str, Any], ids: Sequence[str], branches: Mapping[str, Floats], ranks: Ranks
) -> None:
    """Write the files of retrieval; ``retrieval.json`` last.

    Args:
        folder: the ``scores/`` folder.
        report: the content of retrieval.json, with "provenance".
        ids: U utterance ids.
        branches: by branch, embeddings [U, J]. The first branch is the one that ``ranks`` belong to.
        ranks: by direction, the rank and the image of every query.
    """
    for number, (branch, embeddings) in enumerate(branches.items()):
        save_embeddings(folder / (SPEECH if number == 0 else f"speech_embeddings_{branch}.npz"), ids, embeddings)
    origin = report["provenance"]
    scored = {"languages": " ".join(origin["languages"])} if origin.get("languages") else {}
    write_ranks(folder / RANKS, ranks, {**origin["data"], **scored})
    write_json(folder / RETRIEVAL, report)


def write_conditions(folder: Path, report: Mapping[str, Any], ranks: Ranks) -> None:
    """Write the files of the listening conditions; ``conditions.json`` last.

    Args:
        folder: the ``scores/`` folder.
        report: the content of conditions.json, with "provenance".
        ranks: by "CONDITION/DIRECTION", the rank and the image of every query.
    """
    write_ranks(folder / CONDITION_RANKS, ranks, report["provenance"]["data"])
    write_json(folder / CONDITIONS, report)


def write_keywords(
    folder: Path, report: Mapping[str, Any], records: Iterable[Record], ids: Sequence[str], images: Sequence[str],
    contributions: Mapping[str, Floats], attention: Sequence[Floats],
) -> None:  # fmt: skip
    """Write the files of the keywords; ``keywords.json`` last.

    Args:
        folder: the ``scores/`` folder.
        report: the content of keywords.json.
        records: one dictionary for each keyword.
        ids: U utterance ids.
        images: the image id of each utterance, U.
        contributions: by score, what each utterance adds to it, [U, M].
        attention: weights [k_u, T_u] of the first utterances. Without any, an old attention.npz is removed.
    """
    with replacing(folder / KEYWORD_LINES) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_contributions(folder / CONTRIBUTIONS, ids, images, contributions)
    if attention:
        write_attention(folder / ATTENTION, ids[: len(attention)], attention)
    else:
        (folder / ATTENTION).unlink(missing_ok=True)
    write_json(folder / KEYWORDS, report)


def read_scores(path: Path) -> dict[str, Any]:
    """Read retrieval.json or keywords.json.

    Raises:
        UserError: the file is missing or does not hold a JSON object.
    """
    return read_json(path)


def read_speech_embeddings(folder: Path, ids: Sequence[str]) -> Floats:
    """Read the embeddings [U, J] of the first branch, in the order of the utterance ids.

    Raises:
        UserError: the file is missing or damaged, or lacks an utterance.
    """
    return load_embeddings(folder / SPEECH, ids)[1]


def write_image_embeddings(folder: Path, ids: Sequence[str], embeddings: Floats) -> None:
    """Write the embeddings [I, J] of the images of a head with an image tower of its own."""
    save_embeddings(folder / IMAGES, ids, embeddings)


def read_image_embeddings(folder: Path, ids: Sequence[str]) -> Floats | None:
    """Read the L2-normalised embeddings [I, J] of the images; None for a head that reads those of CLIP.

    Raises:
        UserError: the file is damaged, or lacks an image.
    """
    return load_embeddings(folder / IMAGES, ids)[1] if (folder / IMAGES).is_file() else None


def write_ranks(path: Path, ranks: Ranks, data: Mapping[str, str]) -> None:
    """Write the ranks and images of the queries of every direction. data: fingerprints of the data directories."""
    arrays: dict[str, NDArray[Any]] = {"data": np.array(json.dumps(dict(data), sort_keys=True))}
    for name, (rank, image) in ranks.items():
        arrays |= {f"{name}/ranks": rank.astype(np.int32), f"{name}/images": image.astype(np.int32)}
    with replacing(path) as part:
        np.savez_compressed(part, allow_pickle=False, **arrays)


def compare_rank_files(
    first: Sequence[Path], second: Sequence[Path], n: int = 10000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Test two systems on the queries of all their runs, one ``ranks.npz`` for each run (seed).

    All queries of an image, of every seed, change systems together.

    Returns:
        :func:`speechclip.eval.significance.paired_test` for every direction that all files have.

    Raises:
        UserError: a file is missing or damaged, or the ranks are of different queries.
    """
    runs = _read_ranks([*first, *second])
    one, other = _joined_ranks(runs[: len(first)]), _joined_ranks(runs[len(first) :])
    tests = {}
    for name in (name for name in one if name in other):
        if not np.array_equal(one[name][1], other[name][1]):
            raise UserError(f"{second[0]}: {name}: other queries than in {first[0]}. Score both runs on the same data.")
        tests[name] = paired_test(one[name][0], other[name][0], one[name][1], n, seed)
    return tests


def compare_stage_files(files: Sequence[Path], n: int = 10000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return :func:`speechclip.eval.coarse_to_fine.stage_tests` on the queries of all runs of a system.

    Raises:
        UserError: a file is missing or damaged, has no second stage, or the ranks are of different queries.
    """
    ranks = _joined_ranks(_read_ranks(files))
    if not any(name.endswith(REORDERED) for name in ranks):
        raise UserError(f"{files[0]}: has no scores of a second stage. Score a head with one, or give two systems.")
    return stage_tests(ranks, n, seed)


def write_contributions(path: Path, ids: Sequence[str], images: Sequence[str], found: Mapping[str, Floats]) -> None:
    """Write what each of U utterances adds to the keyword scores, with the utterance and image ids."""
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(list(ids)), "images": np.array(list(images)), **found}
    with replacing(path) as part:
        np.savez(part, allow_pickle=False, **arrays)  # not compressed: a reader refuses a file that unpacks to 100x


def compare_keyword_files(
    first: Sequence[Path], second: Sequence[Path], n: int = 10000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return :func:`speechclip.eval.contributions.paired_keyword_tests` of one ``keywords.npz`` for each run (seed).

    The result is empty if one of the files is missing, as for a head without keywords.

    Raises:
        UserError: a file is damaged.
    """
    if not all(path.exists() for path in (*first, *second)):
        return {}
    return paired_keyword_tests(_joined_contributions(first), _joined_contributions(second), n, seed)


def write_attention(path: Path, ids: Sequence[str], attention: Sequence[Floats]) -> None:
    """Write weights over frames.

    The arrays are "ids", "keywords" [U], "frames" [U] and "weights", all flattened weights in half precision.

    Args:
        path: the file.
        ids: U utterance ids.
        attention: weights [k_u, T_u] of each utterance.
    """
    shapes = np.array([weights.shape for weights in attention], dtype=np.int32).reshape(-1, 2)
    flat = [weights.astype(np.float16).ravel() for weights in attention]
    weights = np.concatenate(flat) if flat else np.empty(0, np.float16)
    names = np.array(list(ids))
    with replacing(path) as part:
        np.savez_compressed(
            part, allow_pickle=False, ids=names, keywords=shapes[:, 0], frames=shapes[:, 1], weights=weights
        )


def read_attention(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read the weights over frames [keywords, frames] by utterance. The result is empty if the file is missing.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    arrays = _arrays(path, {"ids", "keywords", "frames", "weights"})
    ids, weights = arrays["ids"].tolist(), arrays["weights"]
    shapes = list(zip(arrays["keywords"].tolist(), arrays["frames"].tolist()))
    ends = np.cumsum([keywords * frames for keywords, frames in shapes])
    if len(ids) != len(shapes) or (len(ends) and ends[-1] != len(weights)):
        raise UserError(f"{path}: {len(weights)} weights do not fit {len(ids)} utterances. Score the keywords again.")
    starts = [0, *ends[:-1].tolist()]
    return {
        name: weights[start : start + shape[0] * shape[1]].reshape(shape).astype(np.float32)
        for name, start, shape in zip(ids, starts, shapes, strict=True)
    }


def read_keyword_lines(path: Path, wanted: Collection[str]) -> dict[str, list[Record]]:
    """Read the lines of keywords.jsonl of the wanted utterances, in the order of the keywords.

    Raises:
        UserError: the file is missing, or a line is not a keyword.
    """
    records: dict[str, list[Record]] = {}
    names, number = set(wanted), 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                record = json.loads(line)
                if record["utterance"] in names:
                    records.setdefault(record["utterance"], []).append(record)
    except FileNotFoundError:
        raise MissingFileError(path) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: line {number} is not a keyword. Score the keywords again.") from error
    for found in records.values():
        found.sort(key=lambda record: record["keyword"])
    return records


def _read_ranks(files: Sequence[Path]) -> list[dict[str, NDArray[Any]]]:
    """Read every ranks.npz once, and check that all were scored on the data of the first."""
    every = [_arrays(path, {"data"}) for path in files]
    for path, arrays in zip(files, every):
        if str(arrays["data"]) != str(every[0]["data"]):
            raise UserError(
                f"{path}: scored on other data than {files[0]}. Score both runs on the same data directory."
            )
    return every


def _joined_ranks(every: Sequence[dict[str, NDArray[Any]]]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return rank and image of the queries of all runs by direction."""
    names = [key.removesuffix("/ranks") for key in every[0] if key.endswith("/ranks")]
    return {
        name: (
            np.concatenate([arrays[f"{name}/ranks"] for arrays in every]),
            np.concatenate([arrays[f"{name}/images"] for arrays in every]),
        )
        for name in names
        if all(f"{name}/{part}" in arrays for arrays in every for part in ("ranks", "images"))
    }


def _joined_contributions(files: Sequence[Path]) -> dict[str, NDArray[Any]]:
    """Return the rows of all files. The number of its file is in front of each utterance id."""
    every = [_contributions(path) for path in files]
    names = [name for name in every[0] if all(name in arrays for arrays in every)]
    joined = {name: np.concatenate([arrays[name] for arrays in every]) for name in names}
    ids = [np.char.add(f"{number} ", arrays["ids"].astype(str)) for number, arrays in enumerate(every)]
    return {**joined, "ids": np.concatenate(ids)}


def _contributions(path: Path) -> dict[str, NDArray[Any]]:
    """Read keywords.npz: "ids", "images" and the scores, each with a row for every utterance."""
    arrays = _arrays(path, {"ids", "images"})
    if any(array.ndim == 0 or len(array) != len(arrays["ids"]) for array in arrays.values()):
        raise UserError(f"{path}: the arrays differ in length. Score the keywords again.")
    return arrays


def _arrays(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file that has at least the named ones."""
    if not path.exists():
        raise MissingFileError(path)
    arrays = read_arrays(path)
    missing = sorted(names - arrays.keys())
    if missing:
        raise UserError(f"{path}: the array '{missing[0]}' is missing. Score the run again.")
    return arrays

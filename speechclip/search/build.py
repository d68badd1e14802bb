"""Build an index of pictures and recordings, or of precomputed embeddings, and update it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.files import check_folder, only_one_writer, replace_folder, write_json
from speechclip.common.parallel import map_ahead
from speechclip.data.embeddings import embeddings_source
from speechclip.data.stored_rows import open_rows
from speechclip.search.embed import BATCH, Embedded, embed_files, try_thumbnail
from speechclip.search.index import (
    INFO,
    NOT_INDEXED,
    SOURCES,
    IndexInfo,
    joint_space,
    model_path,
    model_reference,
    present_folder,
    read_info,
    speech_fingerprint,
    thumbnail_path,
)
from speechclip.search.items import IMAGE, KINDS, RECORDING, WINDOW_MARK, Duplicate, Items, window_id
from speechclip.search.journal import IN_INDEX, Journal, check_updatable
from speechclip.search.sources import Sources, printable
from speechclip.search.vectors import GatheredVectors
from speechclip.search.windows import DEFAULT_WINDOWS, WindowSettings
from speechclip.search.write import DEFAULT_STRUCTURE, Reused, Structure, save_info, write_index

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP

logger = logging.getLogger(__name__)


def index_files(
    model: SpeechCLIP, name: str | Path, sources: Sources, out: str | Path, structure: Structure = DEFAULT_STRUCTURE, *,
    windows: WindowSettings = DEFAULT_WINDOWS, branch: str | None = None, update: bool = False,
) -> Change:  # fmt: skip
    """Embed pictures and recordings, and write an index of them with thumbnails of the pictures.

    A file that cannot be read is logged and left out. A run that is killed leaves the old index, and the next one
    continues with what it had embedded. A second run for the same folder is refused.

    Args:
        model: the model.
        name: the place of the model, which the index stores.
        sources: the files.
        out: folder of the index.
        structure: the structure of the index.
        windows: how recordings are cut.
        branch: the branch that embeds recordings; None for the model's default.
        update: take the embeddings of unchanged files from the present index.

    Raises:
        UserError: no file can be read, the model has no CLIP for pictures, or ``out`` is a folder that is not an index.
    """
    target = check_target(out)
    with only_one_writer(target):
        restore(target)
        old = check_updatable(target) if update else {}
        journal = _open_journal(model, target, sources, windows, branch, update)
        try:
            if journal.resumed:
                logger.info("%d files were embedded by a run that did not end", journal.resumed)
            embedded = embed_files(model, sources, journal, windows, branch)
            if not embedded.files:
                count = len(sources.images) + len(sources.recordings)
                raise UserError(f"{target}: not written. None of the {count} files can be read.")
            change = _describe_change(old, embedded)
            if update and _is_up_to_date(target, old, embedded, journal, structure):
                logger.info("%s: nothing has changed", target)
            else:
                reference = model_reference(name, target)
                info = IndexInfo(
                    "", 0, journal.dim, journal.keys[IMAGE], reference, bool(sources.images),
                    not_indexed=len(embedded.not_indexed), speech=journal.keys.get(RECORDING, ""),
                )  # fmt: skip
                record = {"folders": dict(sources.folders), "branch": branch, "window": dataclasses.astuple(windows)}
                replace_folder(target, lambda folder: _assemble(
                    folder, target, embedded, journal, info, structure, record, update
                ))  # fmt: skip
        except UserError:
            if not journal.has_records():
                journal.remove()
            raise
        finally:
            journal.close()
        journal.remove()
    return change._replace(info=read_info(target))


def _open_journal(
    model: SpeechCLIP, target: Path, sources: Sources, windows: WindowSettings, branch: str | None, update: bool
) -> Journal:
    """Return the embeddings that are known from a run that did not end and, for an update, from the present index."""
    if sources.images:
        model.network.require_clip()
    keys = {IMAGE: joint_space(model)}
    if sources.recordings:
        keys[RECORDING] = f"{speech_fingerprint(model, branch)}:{windows.seconds:g}:{windows.overlap:g}"
    journal = Journal(target, model.network.dimensions.joint, keys)
    if update:
        journal.add_index(target)
    journal.resume()
    return journal


class Change(NamedTuple):
    """The difference between the new index and the one before.

    Attributes:
        info: the new index.
        files: number of files that are indexed.
        added: number of new files.
        changed: number of changed files.
        removed: number of files that are no longer indexed.
        recordings: number of recordings that are indexed.
    """

    info: IndexInfo | None
    files: int
    added: int
    changed: int
    removed: int
    recordings: int


def _describe_change(old: dict[str, Any], embedded: Embedded) -> Change:
    before, now = old.get("files", {}), embedded.files
    changed = sum(before[item][4] != now[item].digest for item in now if item in before)
    recordings = sum(record.kind == RECORDING for record in now.values())
    return Change(
        None, len(now), len(now.keys() - before.keys()), changed, len(before.keys() - now.keys()), recordings
    )  # fmt: skip


def _is_up_to_date(
    target: Path, old: dict[str, Any], embedded: Embedded, journal: Journal, structure: Structure
) -> bool:
    """Return whether an index has these files, of this model, in this structure."""
    info, listed = read_info(target), target / NOT_INDEXED
    return (
        old["files"] == {item: list(record) for item, record in embedded.files.items()}
        and (listed.read_text(encoding="utf-8") if listed.is_file() else "") == _list_text(embedded.not_indexed)
        and (info.space, info.speech) == (journal.keys[IMAGE], journal.keys.get(RECORDING, ""))
        and structure.kind in ("auto", info.kind)
    )


def restore(target: Path) -> None:
    """Give an index its name back if a kill came between the two renames of `replace_folder`."""
    old = present_folder(target)
    if old != target:
        old.rename(target)


def _assemble(
    folder: Path, target: Path, embedded: Embedded, journal: Journal, info: IndexInfo, structure: Structure,
    record: dict[str, Any], update: bool,
) -> None:  # fmt: skip
    """Write all files of an index of files into a new folder."""
    table = collect(embedded, journal)
    info = write_index(
        folder, table.items, table.vectors, structure, info, old=Reused(target, table.old_rows) if update else None
    )
    for row, digest in enumerate(table.pictures):
        _link(journal.thumbnail(digest), thumbnail_path(folder, row))
    _list_not_indexed(folder, target, embedded.not_indexed)
    files = {item: list(record) for item, record in embedded.files.items()}
    write_json(folder / SOURCES, {**record, "rows": table.row_files, "files": files}, compact=True)


class Table(NamedTuple):
    """The rows of an index of files.

    Attributes:
        items: ids, files, windows and duplicates.
        vectors: [N, D].
        pictures: the digest of each picture, by row.
        row_files: id of the file of each row.
        old_rows: row of each vector in the index before, [N]; -1 if it was not there.
    """

    items: Items
    vectors: GatheredVectors
    pictures: list[str]
    row_files: list[str]
    old_rows: NDArray[np.int64]


def collect(embedded: Embedded, journal: Journal) -> Table:
    """Return the rows of files: pictures, then recordings, by id. Files with the same content share their rows."""
    items = Items([])
    first_row: dict[tuple[str, str], range] = {}
    others: dict[int, list[Duplicate]] = {}
    row_files: list[str] = []
    pictures: list[str] = []
    tables, rows = array("b"), array("q")
    for item, record in sorted(embedded.files.items(), key=lambda one: (KINDS.index(one[1].kind), one[0])):
        key = record.kind, record.digest
        if key in first_row:
            for row in first_row[key]:
                others.setdefault(row, []).append(Duplicate(_row_id(item, items, row), record.path))
            continue
        known = journal.get(*key)
        assert known is not None
        count, spans = known.rows, known.spans
        first_row[key] = range(len(items.ids), len(items.ids) + count)
        items.ids.extend([item] if count == 1 else [window_id(item, span) for span in spans])
        items.files.extend([record.path] * count)
        items.spans.extend(spans)
        row_files += [item] * count
        pictures += [record.digest] if record.kind == IMAGE else []
        tables.extend([known.table] * count)
        rows.extend(range(known.first, known.first + count))
    table, row_of = np.array(tables, dtype=np.int8), np.array(rows, dtype=np.int64)
    vectors = GatheredVectors(journal.tables(), table, row_of, journal.dim)
    duplicates = {row: tuple(found) for row, found in others.items()}
    items = dataclasses.replace(items, duplicates=duplicates)
    return Table(items, vectors, pictures, row_files, np.where(table == IN_INDEX, row_of, -1))


def _row_id(item: str, items: Items, row: int) -> str:
    """Return the id of a duplicate's row: the window is that of the row."""
    mark = items.ids[row].rfind(WINDOW_MARK)
    first = len(items.ids) - len(items.spans)
    single = row < first or mark < 0
    return item if single else window_id(item, items.spans[row - first])


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links. A missing file is ignored."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, target)


def index_embeddings(
    model: SpeechCLIP, name: str | Path, embeddings: str | Path, out: str | Path,
    images: Mapping[str, Path] | None = None, structure: Structure = DEFAULT_STRUCTURE,
) -> IndexInfo:  # fmt: skip
    """Write an index of precomputed embeddings.

    Args:
        model: a model that was trained for the joint space of the embeddings. Their width is checked, and their CLIP if
            the file names it.
        name: the place of the model, which the index stores.
        embeddings: an ``.npz`` file with ``ids`` [N] and ``embeddings`` [N, D].
        out: folder of the index.
        images: image files for thumbnails, by id or by id without the suffix.
        structure: the structure of the index.

    Raises:
        UserError: a file cannot be read, or the embeddings do not fit the model or the images.
    """
    target = check_target(out)
    ids, table = open_rows(embeddings)
    if table.shape[1] != model.network.dimensions.joint:
        raise UserError(
            f"{embeddings}: {table.shape[1]} dimensions, {name} has {model.network.dimensions.joint}."
            " Use the embeddings of one CLIP."
        )
    source, space = embeddings_source(embeddings).get("weights"), joint_space(model)
    if source and model.network.clip is not None and space != f"clip:{source}":
        raise UserError(f"{embeddings}: computed by another CLIP than that of {name}. Use the embeddings of one CLIP.")
    by_id = _by_id(images or {})
    files = [str(by_id[item].resolve()) if item in by_id else "" for item in ids]
    if images and not any(files):
        raise UserError(
            f"{embeddings}: none of its ids is one of the {len(images)} images (the first is {ids[0]!r})."
            " Use the ids of the images."
        )
    rows = [row for row, file in enumerate(files) if file]

    def write(folder: Path) -> None:
        info = IndexInfo("", 0, 0, space, model_reference(name, target), thumbnails=False)
        info = write_index(folder, Items(list(ids), files if images else []), table, structure, info)
        count = 0
        thumbnails = map_ahead(lambda row: try_thumbnail(Path(files[row])), rows, ahead=2 * BATCH)
        for row, thumbnail in zip(rows, thumbnails):
            if isinstance(thumbnail, UserError):
                logger.info("no thumbnail: %s", printable(str(thumbnail)))
            else:
                _write_thumbnail(thumbnail_path(folder, row), thumbnail)
                count += 1
        save_info(folder, dataclasses.replace(info, thumbnails=count > 0))

    with only_one_writer(target):
        restore(target)
        replace_folder(target, write)
    return read_info(target)


def check_target(out: str | Path) -> Path:
    """Return the folder of an index that may be written: a new or empty folder, or an index that will be replaced.

    Raises:
        UserError: the folder holds something else.
    """
    target = Path(out)
    check_folder(target.parent)
    if target.exists() and not (target / INFO).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an index. Give another folder with --out.")
    return target


def _write_thumbnail(path: Path, thumbnail: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(thumbnail)


def _list_text(not_indexed: Sequence[tuple[Path, str]]) -> str:
    return "".join(f"{printable(str(path))}\t{printable(reason)}\n" for path, reason in sorted(not_indexed))


def _list_not_indexed(folder: Path, target: Path, not_indexed: Sequence[tuple[Path, str]]) -> None:
    """Write the list of files that are not indexed, with the reasons, and log their number by suffix."""
    if not not_indexed:
        return
    (folder / NOT_INDEXED).write_text(_list_text(not_indexed), encoding="utf-8")
    counts = Counter(printable(path.suffix.lower()) or "no suffix" for path, _ in not_indexed)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    logger.info("not indexed: %s. The files and reasons are listed in %s.", kinds, target / NOT_INDEXED)


def _by_id(images: Mapping[str, Path]) -> dict[str, Path]:
    """Return files by id, and by id without folders and suffix if only one file has that name."""
    stems: dict[str, list[Path]] = {}
    for item, path in images.items():
        stems.setdefault(Path(item).stem, []).append(path)
    return {**{stem: paths[0] for stem, paths in stems.items() if len(paths) == 1}, **images}


class Remembered(NamedTuple):
    """The arguments with which an index of files was built: folders ("" for none), model, windows and branch."""

    images: str
    recordings: str
    model: str
    windows: WindowSettings
    branch: str | None


def remembered(index: Path) -> Remembered:
    """Return the arguments with which an index was built.

    Raises:
        UserError: the index is missing, damaged or not made of files, or its model was moved.
    """
    folder = present_folder(index)
    content = check_updatable(folder)
    folders = content["folders"]
    return Remembered(
        folders.get(IMAGE, ""), folders.get(RECORDING, ""), model_path(folder, read_info(folder)),
        WindowSettings(*content["window"]), content["branch"],
    )  # fmt: skip


def describe(change: Change, update: bool = False) -> str:
    """Return one line about an index: the number of items, and how they have changed."""
    info = change.info
    assert info is not None
    parts = [f"{info.count - info.recordings} images"] if info.count > info.recordings else []
    if info.recordings:
        parts.append(f"{info.recordings} windows of {change.recordings} recordings")
    rest = [f"{info.not_indexed} files not indexed"] if info.not_indexed else []
    if update:
        rest.append(f"{change.added} new, {change.changed} changed, {change.removed} removed")
    return ", ".join([f"{' and '.join(parts)} of {info.dim} dimensions ({info.kind})", *rest])

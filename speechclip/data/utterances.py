"""The utterances and images of a data directory as columns, in memory or mapped."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from speechclip.data.mapped import Column, gathered

_BLOCK = 1 << 20  # rows that are renumbered at a time


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken caption of one image.

    Attributes:
        id: of the utterance.
        wav: its recording, used as a whole.
        text: the caption as the corpus has it.
        speaker: id of the speaker.
        image_id: id of the image.
        clip_text: the caption as CLIP reads it, for embeddings, vocabulary and gold sets. Empty: the same as ``text``.
        language: of the speech and the caption, such as ``en``, without white space. Empty: unknown.
    """

    id: str
    wav: Path
    text: str
    speaker: str
    image_id: str
    clip_text: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        """Fill in the default of ``clip_text``."""
        if not self.clip_text:
            object.__setattr__(self, "clip_text", self.text)


@dataclass(frozen=True, eq=False)
class UtteranceTable(Sequence[Utterance]):
    """N utterances, sorted by id. An :class:`Utterance` is made when it is asked for.

    Attributes:
        ids: of the utterances.
        wavs: their recordings.
        texts: their captions.
        clip_texts: their captions as CLIP reads them; the same column if they do not differ.
        speaker_ids: all speakers, sorted.
        speakers: [N], positions in ``speaker_ids``.
        image_ids: all images, sorted.
        images: [N], positions in ``image_ids``.
        language_ids: all languages, sorted; empty if they are unknown.
        languages: [N], positions in ``language_ids``, or None.
    """

    ids: Column
    wavs: Column
    texts: Column
    clip_texts: Column
    speaker_ids: Column
    speakers: NDArray[np.integer[Any]]
    image_ids: Column
    images: NDArray[np.int64]
    language_ids: Column
    languages: NDArray[np.integer[Any]] | None

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> Utterance: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Utterance, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        """Return an utterance, or some for a slice."""
        if isinstance(at, slice):
            return tuple(self[number] for number in range(*at.indices(len(self))))
        language = "" if self.languages is None else self.language_ids[int(self.languages[at])]
        return Utterance(
            self.ids[at], Path(self.wavs[at]), self.texts[at], self.speaker_ids[int(self.speakers[at])],
            self.image_ids[int(self.images[at])], self.clip_texts[at], language,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Utterance]:
        """Yield all utterances."""
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence holds equal utterances."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def languages_of(self) -> list[str]:
        """Return the language of each utterance; empty strings if they are unknown."""
        if self.languages is None:
            return [""] * len(self)
        names = list(self.language_ids)
        return [names[at] for at in self.languages.tolist()]

    def take(self, rows: NDArray[np.int64], kept: NDArray[np.int64]) -> UtteranceTable:
        """Return the utterances at some positions.

        Args:
            rows: positions of the utterances, ascending.
            kept: positions of their images, ascending.
        """
        clip = self.clip_texts if self.clip_texts is self.texts else self.clip_texts.take(rows)
        texts = self.texts.take(rows)
        images = gathered(self.images, rows)
        for start in range(0, len(images), _BLOCK):
            images[start : start + _BLOCK] = np.searchsorted(kept, images[start : start + _BLOCK])
        return UtteranceTable(
            self.ids.take(rows), self.wavs.take(rows), texts, texts if clip is self.texts else clip, self.speaker_ids,
            gathered(self.speakers, rows), self.image_ids.take(kept),
            images,
            self.language_ids, None if self.languages is None else gathered(self.languages, rows),
        )  # fmt: skip


class ImageTable(Mapping[str, Path]):
    """Image id to file, sorted by id.

    Args:
        ids: of the images.
        files: their files.
    """

    def __init__(self, ids: Column, files: Column) -> None:
        self.ids, self.files = ids, files

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(self.ids)

    def __contains__(self, key: object) -> bool:
        """Return whether an image exists."""
        return isinstance(key, str) and self.ids.find(key) >= 0

    def __getitem__(self, key: str) -> Path:
        """Return the file of an image."""
        at = self.ids.find(key)
        if at < 0:
            raise KeyError(key)
        return Path(self.files[at])

    def values(self) -> ValuesView[Path]:
        """Return the files."""
        return _Files(self)

    def items(self) -> ItemsView[str, Path]:
        """Return pairs of id and file."""
        return _Items(self)

    def take(self, rows: NDArray[np.int64]) -> ImageTable:
        """Return the images at some positions."""
        return ImageTable(self.ids.take(rows), self.files.take(rows))


class _Files(ValuesView[Path]):
    """Files in order, without a search for each id."""

    def __init__(self, table: ImageTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[Path]:
        """Yield the files."""
        return map(Path, self._table.files)


class _Items(ItemsView[str, Path]):
    """Pairs in order, without a search for each id."""

    def __init__(self, table: ImageTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Yield the pairs."""
        return zip(self._table.ids, map(Path, self._table.files))

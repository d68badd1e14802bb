"""Subword vocabularies of CLIP text towers: OpenAI's BPE (open_clip) and sentencepiece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from speechclip.common.errors import UserError

WORD_START = "\u2581"  # sentencepiece's mark of a word's first piece
WORD_END = "</w>"  # the BPE's mark of a word's last piece


class Tokenizer(Protocol):
    """The vocabulary of a text tower.

    ``encode`` does not return special ids, with one exception: in OpenAI's BPE, id 0 is both padding and "!".

    Attributes:
        pad: id of the padding.
        sot: id of the start of a text.
        eot: id of the end of a text.
    """

    pad: int
    sot: int
    eot: int

    def encode(self, text: str) -> list[int]:
        """Return the subword ids of a text, without special tokens."""
        ...

    def subword(self, token: int) -> str:
        """Return a subword as text, with its mark of a word's start or end."""
        ...

    def retokenize(self, row: Sequence[int]) -> list[int]:
        """Decode a row with special tokens to text, encode this text again, and return its ids."""
        ...


class BpeTokenizer:
    """OpenAI CLIP's byte-pair encoding, from open_clip."""

    pad = 0

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.sot: int = tokenizer.sot_token_id
        self.eot: int = tokenizer.eot_token_id

    def encode(self, text: str) -> list[int]:
        """Return the subword ids of a text after CLIP's cleaning, which lower-cases it."""
        return list(self._tokenizer.encode(text))

    def subword(self, token: int) -> str:
        """Return a subword, e.g. ``dog</w>``. Bytes that are only part of a character become U+FFFD."""
        piece = self._tokenizer.decoder[token]
        end = WORD_END if piece.endswith(WORD_END) else ""
        characters = piece[: len(piece) - len(end)]
        if token in (self.sot, self.eot):
            return piece
        return bytes(self._tokenizer.byte_decoder[c] for c in characters).decode("utf-8", errors="replace") + end

    def retokenize(self, row: Sequence[int]) -> list[int]:
        """Return the ids of the decoded row. Padding, a long run of "!", becomes subwords of several "!"."""
        return list(self._tokenizer.encode(self._tokenizer.decode(list(row))))


class SentencePieceTokenizer:
    """A sentencepiece vocabulary. SOT and EOT are the two ids after its pieces, so that EOT is the largest id.

    Args:
        model: the sentencepiece file.

    Raises:
        UserError: the file is not a sentencepiece model.
    """

    pad = 0

    def __init__(self, model: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model}: not a sentencepiece model") from error
        self.sot: int = self._processor.get_piece_size()
        self.eot: int = self.sot + 1

    def encode(self, text: str) -> list[int]:
        """Return the subword ids of a text in lower case."""
        return list(self._processor.encode(text.lower()))

    def subword(self, token: int) -> str:
        """Return a subword, e.g. U+2581 + ``dog``."""
        if token in (self.sot, self.eot):
            return "<start_of_text>" if token == self.sot else "<end_of_text>"
        return str(self._processor.id_to_piece(token))

    def retokenize(self, row: Sequence[int]) -> list[int]:
        """Return the row unchanged, because special tokens have no text here."""
        return list(row)


def add_special_tokens(tokenizer: Tokenizer, ids: Sequence[int], context_length: int) -> list[int]:
    """Return SOT, subwords, EOT and padding, ``context_length`` ids in total. Subwords that do not fit are cut."""
    content = list(ids)[: context_length - 2]
    row = [tokenizer.sot, *content, tokenizer.eot]
    return row + [tokenizer.pad] * (context_length - len(row))


def join_subwords(subwords: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Join the subwords of a caption to words. Return each word without marks, and the places of its subwords."""
    words: list[tuple[str, list[int]]] = []
    ended = True
    for place, subword in enumerate(subwords):
        plain = subword.removeprefix(WORD_START).removesuffix(WORD_END)
        if ended or subword.startswith(WORD_START):
            words.append((plain, [place]))
        else:
            words[-1] = (words[-1][0] + plain, [*words[-1][1], place])
        ended = subword.endswith(WORD_END)
    return [(text, places) for text, places in words if text]

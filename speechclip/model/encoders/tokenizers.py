"""Subword vocabularies of CLIP text towers: OpenAI's BPE (open_clip), sentencepiece, and transformers' tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from speechclip.common.errors import UserError

WORD_START = "\u2581"  # sentencepiece's mark of a word's first piece
WORD_END = "</w>"  # the BPE's mark of a word's last piece
_CONTINUED = "##"  # WordPiece's mark of a piece that is not a word's first


class Tokenizer(Protocol):
    """The vocabulary of a text tower.

    ``encode`` does not return special ids, with one exception: in OpenAI's BPE, id 0 is both padding and "!".

    Attributes:
        pad: id of the padding.
        prefix: ids before the subwords of a text; empty for SigLIP.
        suffix: ids after the subwords.
        special: all ids that no keyword may have.
        placeholder: an id that is neither padding nor an end.
        size: number of ids.
        length: number of ids of a row, if the tokenizer decides it; None: the text tower does.
    """

    @property
    def pad(self) -> int: ...
    @property
    def prefix(self) -> tuple[int, ...]: ...
    @property
    def suffix(self) -> tuple[int, ...]: ...
    @property
    def special(self) -> frozenset[int]: ...
    @property
    def placeholder(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def length(self) -> int | None: ...

    def encode(self, text: str) -> list[int]:
        """Return the subword ids of a text, without special tokens."""
        ...

    def subword(self, token: int) -> str:
        """Return a subword as text, with its mark of a word's start or end."""
        ...

    def retokenize(self, row: Sequence[int]) -> list[int]:
        """Decode a row with special tokens to text, encode this text again, and return its ids."""
        ...


class _Surrounded:
    """A vocabulary with one start and one end, of which the end is the last id."""

    pad = 0
    sot: int
    eot: int
    length: int | None = None

    @property
    def prefix(self) -> tuple[int, ...]:
        """The start of a text."""
        return (self.sot,)

    @property
    def suffix(self) -> tuple[int, ...]:
        """The end of a text."""
        return (self.eot,)

    @property
    def special(self) -> frozenset[int]:
        """Padding, start and end."""
        return frozenset({self.pad, self.sot, self.eot})

    @property
    def placeholder(self) -> int:
        """The start, which is smaller than the end."""
        return self.sot

    @property
    def size(self) -> int:
        """The number of ids."""
        return self.eot + 1


class BpeTokenizer(_Surrounded):
    """OpenAI CLIP's byte-pair encoding, from open_clip."""

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


class SentencePieceTokenizer(_Surrounded):
    """A sentencepiece vocabulary. SOT and EOT are the two ids after its pieces, so that EOT is the largest id.

    Args:
        model: the sentencepiece file.

    Raises:
        UserError: the file is not a sentencepiece model.
    """

    def __init__(self, model: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model}: not a sentencepiece model. Copy or download the file again.") from error
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


class TransformersTokenizer:
    """A tokenizer of transformers as open_clip uses it: sentencepiece (SigLIP, XLM-R, mT5, NLLB) or WordPiece (BERT).

    Args:
        tokenizer: open_clip's ``HFTokenizer`` or ``SigLipTokenizer``, or another object with their attributes.
        path: the model's path, for errors.

    Raises:
        UserError: another kind of vocabulary, or settings whose rows are not prefix, subwords, suffix, padding.
    """

    def __init__(self, tokenizer: Any, path: str) -> None:
        self._tokenizer, self._clean = tokenizer.tokenizer, getattr(tokenizer, "clean_fn", _clean_siglip)
        own = self._tokenizer
        if getattr(tokenizer, "tokenizer_mode", ""):
            raise UserError(
                f"{path}: text_cfg.tokenizer_mode {tokenizer.tokenizer_mode!r} is not supported. Use another model."
            )
        for name in ("padding_side", "truncation_side"):
            if getattr(own, name, "right") != "right":
                raise UserError(f"{path}: its tokenizer has {name} {getattr(own, name)!r}. Only 'right' is supported.")
        pieces = own.get_vocab()
        if any(piece.startswith(WORD_START) for piece in pieces):
            self._continued = ""
        elif any(piece.startswith(_CONTINUED) for piece in pieces):
            self._continued = _CONTINUED
        else:
            raise UserError(
                f"{path}: its tokenizer {type(own).__name__} is neither CLIP's BPE, sentencepiece nor WordPiece."
                " Use another model."
            )
        if own.pad_token_id is None:
            raise UserError(f"{path}: its tokenizer has no padding. Set pad_token in its configuration.")
        self.pad = int(own.pad_token_id)
        self.length: int | None = tokenizer.context_length
        self.prefix, self.suffix = self._ends(path)
        named = {token for token in own.all_special_ids if token is not None}
        if getattr(tokenizer, "strip_sep_token", False):  # open_clip writes 0 in its place
            self.prefix, self.suffix = (
                tuple(0 if token == own.sep_token_id else token for token in ids) for ids in (self.prefix, self.suffix)
            )
        self.special = frozenset({self.pad, *self.prefix, *self.suffix, *named})
        self.size = max(pieces.values()) + 1
        self.placeholder = next(token for token in range(self.size) if token not in self.special)

    def encode(self, text: str) -> list[int]:
        """Return the subword ids of a text after open_clip's cleaning."""
        return list(self._tokenizer(self._clean(text), add_special_tokens=False, verbose=False).input_ids)

    def subword(self, token: int) -> str:
        """Return a subword. WordPiece gets the marks of sentencepiece: U+2581 at the start of a word, no "##"."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if not self._continued or token in self.special:
            return piece
        return piece.removeprefix(_CONTINUED) if piece.startswith(_CONTINUED) else WORD_START + piece

    def retokenize(self, row: Sequence[int]) -> list[int]:
        """Return the row unchanged, because these tokenizers do not write special tokens as text."""
        return list(row)

    def _ends(self, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the special ids before and after a text."""
        content = self.encode("a")
        whole = list(self._tokenizer("a").input_ids)
        for start in range(len(whole) - len(content) + 1):
            if content and whole[start : start + len(content)] == content:
                return tuple(whole[:start]), tuple(whole[start + len(content) :])
        raise UserError(
            f"{path}: its tokenizer changes the subwords of a text when it adds special tokens. Use another model."
        )


def _clean_siglip(text: str) -> str:
    """Return the text that open_clip's ``SigLipTokenizer`` encodes."""
    from open_clip.tokenizer import basic_clean, canonicalize_text

    return str(canonicalize_text(basic_clean(text)))


def add_special_tokens(tokenizer: Tokenizer, ids: Sequence[int], context_length: int) -> list[int]:
    """Return prefix, subwords, suffix and padding, ``context_length`` ids. Subwords that do not fit are cut."""
    content = list(ids)[: context_length - len(tokenizer.prefix) - len(tokenizer.suffix)]
    row = [*tokenizer.prefix, *content, *tokenizer.suffix]
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

"""The text towers of CLIP models, run from embeddings, so that keyword vectors can replace subword embeddings.

Three kinds are supported: open_clip's own transformer, transformers' models in open_clip (XLM-R, mT5, NLLB, BERT), and
transformers' SigLIP, which :mod:`~speechclip.model.encoders.siglip` gives the attributes of the first kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.model.encoders.tokenizers import Tokenizer

#: Model types of transformers that run from embeddings as they do from ids.
_SUPPORTED = ("bert", "m2m_100", "mt5", "roberta", "t5", "xlm-roberta")


class TextTower(ABC):
    """A text transformer over subword embeddings.

    Attributes:
        context_length: number of positions.
        joint_dim: width of the embedding.
        cuts_padding: the embedding does not depend on padding, so trailing padding need not be computed.
    """

    context_length: int
    joint_dim: int
    cuts_padding: bool

    @property
    @abstractmethod
    def table(self) -> nn.Embedding:
        """The subword embeddings."""

    @property
    def subword_embeddings(self) -> Tensor:
        """The embeddings of all subwords as the transformer reads them, [vocabulary, subword_dim]."""
        scale = getattr(self.table, "embed_scale", 1.0)  # NLLB's table is multiplied when it is read
        return self.table.weight if scale == 1.0 else self.table.weight * scale

    @abstractmethod
    def run(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Run the transformer.

        Args:
            embeddings: [B, S, D], subword embeddings or keywords.
            ids: [B, S], their ids. Only padding and the end of the text are read from them.

        Returns:
            [B, joint_dim], not normalised.
        """

    @abstractmethod
    def check_keywords(self) -> None:
        """Check that the tower can embed keywords.

        Raises:
            UserError: the embedding does not depend on the keywords, or its position depends on their ids.
        """


class OpenClipText(TextTower):
    """open_clip's text transformer.

    Args:
        text: open_clip's ``CLIP``, ``TextTransformer``, or a module with the same attributes.
        tokenizer: the vocabulary.
        path: the model's path, for errors.

    Raises:
        UserError: the model has no text transformer over subword embeddings.
    """

    def __init__(self, text: Any, tokenizer: Tokenizer, path: str) -> None:
        self._text, self._tokenizer, self._path = text, tokenizer, path
        for name in ("token_embedding", "positional_embedding", "transformer", "ln_final"):
            if getattr(text, name, None) is None:
                raise UserError(f"{path}: its text tower has no {name}. A transformer over subwords is needed.")
        self.context_length = int(text.context_length)
        width, projection = int(text.token_embedding.weight.shape[1]), text.text_projection
        self.joint_dim = (
            width
            if projection is None
            else projection.out_features if isinstance(projection, nn.Linear) else int(projection.shape[1])
        )  # fmt: skip
        self._pool_type: str = getattr(text, "text_pool_type", None) or text.pool_type
        self._eos_id: int | None = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        # If only positions up to EOT change the embedding, the others are not computed.
        self.cuts_padding = (
            text.attn_mask is not None and self._cls is None and self._pool_type in ("argmax", "eos")
        )  # fmt: skip

    @property
    def table(self) -> nn.Embedding:
        """The subword embeddings."""
        return cast(nn.Embedding, self._text.token_embedding)

    @property
    def _cls(self) -> Tensor | None:
        """The vector after the text whose output is the embedding (CoCa)."""
        return cast("Tensor | None", getattr(self._text, "cls_emb", None))

    def check_keywords(self) -> None:
        """Check that the tower can embed keywords, see :class:`TextTower`."""
        tokenizer, path = self._tokenizer, self._path
        end = tokenizer.suffix[-1] if tokenizer.suffix else None
        if self._cls is None and self._pool_type == "first" and self._text.attn_mask is not None:
            raise UserError(
                f"{path}: its text embedding (pool_type first) does not depend on the text. Use another model."
            )
        if self._cls is None and self._pool_type == "eos" and self._eos_id != end:
            raise UserError(
                f"{path}: text_cfg.eos_id is {self._eos_id}, but texts end with {end}. "
                "A head with keywords needs equal ids."
            )
        if self._cls is None and self._pool_type == "argmax" and end != tokenizer.size - 1:
            raise UserError(
                f"{path}: its text embedding (pool_type argmax) is at the largest id, but texts end with "
                f"{end} of {tokenizer.size} ids. A head with keywords needs pool_type eos or last."
            )

    def _positions(self, ids: Tensor) -> Tensor:
        """Return the position [B] of the embedding of rows [B, S], as open_clip's poolings "argmax" and "eos" do."""
        return ids.argmax(dim=1) if self._pool_type == "argmax" else ids.eq(self._eos_id or 0).int().argmax(dim=1)

    def run(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Run the transformer, see :class:`TextTower`."""
        text, cls = self._text, self._cls
        mask = text.attn_mask
        if cls is not None:
            embeddings = torch.cat([embeddings, cls.expand(len(embeddings), 1, -1)], dim=1)
        length = embeddings.shape[1]
        mask = None if mask is None else mask[:length, :length]
        if cls is not None or getattr(text, "use_pad_mask", False):
            padding = text._build_additive_mask(ids, length, embeddings.dtype)  # [B * heads, S, S]
            mask = padding if mask is None else mask[None] + padding
        x = embeddings + text.positional_embedding[:length]
        x = text.transformer(x, attn_mask=mask)
        if cls is not None:
            x = text.ln_final(x[:, -1])
        else:
            x = text.ln_final(x)
            rows = torch.arange(len(x), device=x.device)
            x = x[:, 0] if self._pool_type == "first" else x[:, -1] if self._pool_type == "last" else x[
                rows, self._positions(ids)
            ]  # fmt: skip
        projection = text.text_projection
        if projection is None:
            return cast(Tensor, x)
        return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)


class TransformersText(TextTower):
    """A text model of transformers in open_clip.

    Args:
        text: open_clip's ``HFTextEncoder``.
        tokenizer: the vocabulary.
        path: the model's path, for errors.

    Raises:
        UserError: a model type or pooling that cannot run from embeddings.
    """

    def __init__(self, text: Any, tokenizer: Tokenizer, path: str) -> None:
        self._text, self._tokenizer = text, tokenizer
        kind = str(text.config.model_type)
        if kind not in _SUPPORTED:
            raise UserError(
                f"{path}: text model {kind!r} is not supported (supported: {', '.join(_SUPPORTED)}). Use another model."
            )
        if type(text.pooler).__name__ == "MaxPooler":
            raise UserError(
                f"{path}: text_cfg.hf_pooler_type max_pooler does not run in open_clip itself. Use another model."
            )
        if text.output_tokens:
            raise UserError(
                f"{path}: text_cfg.output_tokens must be false for a text model of transformers. Use another model."
            )
        if tokenizer.length is None:
            raise UserError(
                f"{path}: a text model of transformers needs text_cfg.hf_tokenizer_name. Use another model."
            )
        self.context_length, self.joint_dim = tokenizer.length, int(text.output_dim)
        if text.config.pad_token_id != tokenizer.pad:
            raise UserError(
                f"{path}: its text model masks the id {text.config.pad_token_id}, but its tokenizer pads with "
                f"{tokenizer.pad}. Equal ids are needed."
            )
        self.cuts_padding = True  # it is masked

    @property
    def table(self) -> nn.Embedding:
        """The subword embeddings."""
        return cast(nn.Embedding, self._text.transformer.get_input_embeddings())

    def check_keywords(self) -> None:
        """Check nothing: every position changes the embedding, and no position depends on ids."""

    def run(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Run the transformer, see :class:`TextTower`."""
        mask = (ids != self._tokenizer.pad).long()
        output = self._text.transformer(inputs_embeds=embeddings, attention_mask=mask)
        return cast(Tensor, self._text.proj(self._text.pooler(output, mask)))

"""Frozen CLIP: open_clip's towers.

The text transformer is run by hand, so that a cascaded head can replace subword embeddings by keyword vectors (Shih et
al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from speechclip.common.constants import CLIP_CONFIG
from speechclip.common.errors import MissingFileError, UserError, first_line
from speechclip.common.files import read_json
from speechclip.config import ClipConfig
from speechclip.convert.clip import is_transformers_clip, read_clip
from speechclip.convert.clip_transformers import check_vocabulary
from speechclip.model.encoders.base import weights_fingerprint
from speechclip.model.encoders.kernels.linear import freeze_linears
from speechclip.model.encoders.kernels.quick_gelu import replace_quick_gelu
from speechclip.model.encoders.patches import Patches, patch_tokens
from speechclip.model.encoders.preprocess import ImagePreprocess, preprocess_of, preprocess_of_transformers
from speechclip.model.encoders.tokenizers import BpeTokenizer, SentencePieceTokenizer, Tokenizer, add_special_tokens

if TYPE_CHECKING:
    from PIL.Image import Image


class OpenClip(nn.Module):
    """A frozen open_clip model with access to its subword embeddings and its text transformer.

    Args:
        model: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        tokenizer: the vocabulary of the text tower.
        preprocess: the preprocessing of images.
        description: strings that identify the model. See :class:`~speechclip.model.encoders.base.SpeechEncoder`.
            The key "preprocess" is added, a fingerprint of the preprocessing.

    Attributes:
        context_length: number of positions of the text tower.
        subword_dim: width of the subword embeddings.
        joint_dim: width of the joint space.

    Raises:
        UserError: the model has no text transformer over subword embeddings, or returns no single embedding.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, preprocess: ImagePreprocess, description: dict[str, str]
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        freeze_linears(self.model)
        replace_quick_gelu(self.model)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.description = {**description, "preprocess": preprocess.fingerprint}
        text, path = self._text, description["path"]
        for name in ("token_embedding", "positional_embedding", "transformer", "ln_final"):
            if getattr(text, name, None) is None:
                raise UserError(f"{path}: its text tower has no {name}. A transformer over subwords is needed.")
        self.context_length: int = int(text.context_length)
        self.subword_dim: int = int(text.token_embedding.weight.shape[1])
        projection = text.text_projection
        self.joint_dim: int = (
            self.subword_dim
            if projection is None
            else projection.out_features if isinstance(projection, nn.Linear) else int(projection.shape[1])
        )  # fmt: skip
        self._pool_type: str = getattr(text, "text_pool_type", None) or text.pool_type
        self._eos_id: int | None = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        # If only positions up to EOT change the embedding, the others are not computed.
        self._ends_at_eot = text.attn_mask is not None and self._cls is None and self._pool_type in ("argmax", "eos")
        _check_towers(model, text, tokenizer, self.joint_dim, path)

    def train(self, mode: bool = True) -> OpenClip:
        """Stay in eval mode."""
        return super().train(False)

    @property
    def _text(self) -> Any:
        return getattr(self.model, "text", self.model)

    @property
    def _cls(self) -> Tensor | None:
        """The vector after the text whose output is the embedding (CoCa)."""
        return cast("Tensor | None", getattr(self._text, "cls_emb", None))

    @property
    def subword_embeddings(self) -> Tensor:
        """The embeddings of all subwords, [vocabulary, subword_dim]."""
        return cast(Tensor, self._text.token_embedding.weight)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Embed RGB images: [N, joint_dim], L2-normalised."""
        return self.encode_pixels(torch.stack([self.preprocess(image) for image in images]))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images [N, 3, height, width]: [N, joint_dim], L2-normalised."""
        pixels = pixels.to(self.subword_embeddings.device, self.subword_embeddings.dtype)
        return nn.functional.normalize(self.model.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def encode_patches(self, pixels: Tensor) -> Patches:
        """Return the patch tokens of preprocessed images [N, 3, height, width], in float32.

        Raises:
            UserError: the image tower has none.
        """
        pixels = pixels.to(self.subword_embeddings.device, self.subword_embeddings.dtype)
        patches = patch_tokens(self.model.visual, pixels, self.description["path"])
        return patches._replace(tokens=patches.tokens.float())

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts with the full vocabulary: [N, joint_dim], L2-normalised."""
        rows = [add_special_tokens(self.tokenizer, self.tokenizer.encode(text), self.context_length) for text in texts]
        ids = torch.tensor(rows, device=self.subword_embeddings.device)
        if self._ends_at_eot:
            ids = ids[:, : int(self._positions(ids).max()) + 1]
        return nn.functional.normalize(self._run_text(self.subword_embeddings[ids], ids).float(), dim=-1)

    def check_keywords(self) -> None:
        """Check that the text tower can embed keywords.

        Raises:
            UserError: the embedding does not depend on the keywords, or its position depends on their ids.
        """
        path = self.description["path"]
        if self._cls is None and self._pool_type == "first" and self._text.attn_mask is not None:
            raise UserError(f"{path}: its text embedding (pool_type first) does not depend on the text.")
        if self._cls is None and self._pool_type == "eos" and self._eos_id != self.tokenizer.eot:
            raise UserError(
                f"{path}: text_cfg.eos_id is {self._eos_id}, but texts end with {self.tokenizer.eot}. "
                "A head with keywords needs equal ids."
            )

    def encode_keywords(self, keywords: Tensor, counts: Tensor | None = None) -> Tensor:
        """Embed keyword vectors between SOT and EOT with the text transformer. Gradients reach ``keywords``.

        Args:
            keywords: [B, K, subword_dim].
            counts: [B], number of keywords of each utterance; None for K. EOT follows the last keyword.

        Returns:
            [B, joint_dim], not normalised.

        Raises:
            UserError: the text tower has fewer than K + 2 positions.
        """
        batch, most, _ = keywords.shape
        if most + 2 > self.context_length:
            raise UserError(
                f"model.head.keywords: {most} do not fit into the {self.context_length} positions of CLIP's text "
                "tower, with SOT and EOT"
            )
        tokenizer = self.tokenizer
        sot, eot, pad = self.subword_embeddings[[tokenizer.sot, tokenizer.eot, tokenizer.pad]]
        length = most + 2 if self._ends_at_eot else self.context_length
        ends = (torch.full((batch,), most, device=keywords.device) if counts is None else counts) + 1  # of EOT
        at = torch.arange(length, device=keywords.device)[None, :]
        behind = pad.expand(batch, length - most - 1, -1)
        embeddings = torch.cat([sot.expand(batch, 1, -1), keywords.to(sot.dtype), behind], dim=1)
        embeddings = torch.where((at > ends[:, None])[:, :, None], pad, embeddings)
        embeddings = torch.where((at == ends[:, None])[:, :, None], eot, embeddings)
        # The tower reads ids only to find padding and EOT, so SOT can stand for any keyword.
        ids = torch.full((batch, length), tokenizer.sot, device=keywords.device)
        ids = ids.masked_fill(at == ends[:, None], tokenizer.eot).masked_fill(at > ends[:, None], tokenizer.pad)
        return self._run_text(embeddings, ids)

    def _positions(self, ids: Tensor) -> Tensor:
        """Return the position [B] of the embedding of rows [B, S], as open_clip's poolings "argmax" and "eos" do."""
        return ids.argmax(dim=1) if self._pool_type == "argmax" else ids.eq(self._eos_id or 0).int().argmax(dim=1)

    def _run_text(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Run the text transformer.

        Args:
            embeddings: [B, S, D], subword embeddings or keywords.
            ids: [B, S], their ids.

        Returns:
            [B, joint_dim], not normalised.
        """
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


def _check_towers(model: Any, text: Any, tokenizer: Tokenizer, joint_dim: int, path: str) -> None:
    """Raise UserError for settings with which open_clip itself gives no embedding."""
    from open_clip import CoCa

    subwords, positions = len(text.token_embedding.weight), len(text.positional_embedding)
    if text is model and positions != text.context_length:
        raise UserError(f"{path}: text_cfg.embed_cls needs custom_text, without which open_clip cannot run it.")
    if subwords <= tokenizer.eot:
        raise UserError(f"{path}: its text tower has {subwords} subwords, but its tokenizer {tokenizer.eot + 1}.")
    if getattr(text, "cls_emb", None) is None and (getattr(text, "text_pool_type", None) or text.pool_type) == "none":
        raise UserError(f"{path}: text_cfg.pool_type none gives one vector per subword. One per text is needed.")
    if bool(getattr(model.visual, "output_tokens", False)) != isinstance(model, CoCa):
        raise UserError(f"{path}: vision_cfg.output_tokens must be true for CoCa and false for other models.")
    width = getattr(model.visual, "output_dim", joint_dim)
    if width != joint_dim:
        raise UserError(f"{path}: image embeddings have {width} dimensions, text embeddings {joint_dim}.")


def load_clip(config: ClipConfig) -> OpenClip:
    """Load a CLIP model.

    A folder with ``spm.model`` has a sentencepiece vocabulary, any other model OpenAI's BPE.

    Args:
        config: ``path`` is a folder of open_clip or transformers, OpenAI's ``.pt`` file, "hf-hub:ID", or open_clip's
            "NAME:PRETRAINED".

    Raises:
        UserError: the model is missing, cannot be read, or has settings that are not supported.
    """
    from speechclip.common.compat import prepare

    prepare()
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    path = config.path
    if not path:
        raise UserError("model.clip.path: not set. Give an open_clip folder, hf-hub:ID or NAME:PRETRAINED.")
    if Path(path).is_file() or is_transformers_clip(Path(path)):
        return _load_original(Path(path))
    name, pretrained, folder = _model_name(path)
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    except Exception as error:  # open_clip raises many classes for missing and broken files
        raise UserError(f"{path}: CLIP cannot be loaded: {first_line(error)}") from error
    tokenizer: Tokenizer
    if folder is not None and (folder / "spm.model").is_file():
        tokenizer = SentencePieceTokenizer(folder / "spm.model")
    else:
        found = open_clip.get_tokenizer(name)
        if not isinstance(found, SimpleTokenizer):
            raise UserError(
                f"{path}: its tokenizer {type(found).__name__} is neither CLIP's BPE nor a sentencepiece model."
            )
        if found.reduction_fn is not None:
            raise UserError(
                f"{path}: text_cfg.tokenizer_kwargs.reduction_mask is for training. Only truncation is supported."
            )
        tokenizer = BpeTokenizer(found)
    description = {"path": path, "kind": "open_clip", "weights": weights_fingerprint(model)}
    return OpenClip(model, tokenizer, preprocess_of(model.visual.preprocess_cfg, path), description)


def _load_original(path: Path) -> OpenClip:
    """Load OpenAI's file or a transformers folder."""
    from open_clip.tokenizer import SimpleTokenizer

    model, _ = read_clip(path)
    tokenizer = SimpleTokenizer()
    preprocess = preprocess_of(model.visual.preprocess_cfg, str(path))
    if path.is_dir():
        check_vocabulary(path, tokenizer.encoder)
    if model.visual.image_processor is not None:
        processor, source = model.visual.image_processor
        preprocess = preprocess_of_transformers(processor, preprocess.size, source)
    description = {"path": str(path), "kind": "open_clip", "weights": weights_fingerprint(model)}
    return OpenClip(model, BpeTokenizer(tokenizer), preprocess, description)


def _model_name(path: str) -> tuple[str, str | None, Path | None]:
    """Return open_clip's model name, its "pretrained" tag and the local folder of a configured path."""
    folder = Path(path)
    if folder.is_dir():
        settings = folder / CLIP_CONFIG
        try:
            if "model_cfg" not in read_json(settings):
                raise UserError(f"{settings}: the key model_cfg is missing")
        except MissingFileError:
            raise UserError(f"{settings}: is missing. A CLIP folder has open_clip's format.") from None
        return f"local-dir:{path}", None, folder
    if path.startswith("hf-hub:"):
        return path, None, None
    name, colon, pretrained = path.partition(":")
    if not colon:
        raise UserError(f"{path}: no such folder. A CLIP is an open_clip folder, hf-hub:ID or NAME:PRETRAINED.")
    return name, pretrained, None

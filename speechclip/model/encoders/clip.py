"""Frozen CLIP: the towers of open_clip and transformers, SigLIP and multilingual models included.

The text transformer runs from embeddings, so that a cascaded head can replace subword embeddings by keyword vectors
(Shih et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechclip.common.constants import CLIP_CONFIG, ENCODER_CONFIG
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
from speechclip.model.encoders.siglip import is_siglip, load_siglip
from speechclip.model.encoders.text_towers import OpenClipText, TextTower, TransformersText
from speechclip.model.encoders.tokenizers import (
    BpeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    add_special_tokens,
)

if TYPE_CHECKING:
    from PIL.Image import Image


class OpenClip(nn.Module):
    """A frozen open_clip model with access to its subword embeddings and its text transformer.

    Args:
        model: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa``, or a ``Siglip``.
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
        text, path = getattr(model, "text", model), description["path"]
        kind = TransformersText if hasattr(text, "pooler") else OpenClipText
        self._tower: TextTower = kind(text, tokenizer, path)
        self.context_length = self._tower.context_length
        self.subword_dim = self._tower.table.embedding_dim
        self.joint_dim = self._tower.joint_dim
        _check_towers(model, text, tokenizer, self._tower, path)

    def train(self, mode: bool = True) -> OpenClip:
        """Stay in eval mode."""
        return super().train(False)

    @property
    def subword_embeddings(self) -> Tensor:
        """The embeddings of all subwords, [vocabulary, subword_dim]."""
        return self._tower.subword_embeddings

    @property
    def room(self) -> int:
        """The largest number of subwords or keywords between the special tokens."""
        return self.context_length - len(self.tokenizer.prefix) - len(self.tokenizer.suffix)

    @property
    def special_ids(self) -> list[int]:
        """The ids that no keyword may have: padding, start, end, and the other special tokens of the vocabulary."""
        return sorted(self.tokenizer.special)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Embed RGB images: [N, joint_dim], L2-normalised."""
        return self.encode_pixels(torch.stack([self.preprocess(image) for image in images]))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images [N, 3, height, width]: [N, joint_dim], L2-normalised."""
        weight = self._tower.table.weight
        pixels = pixels.to(weight.device, weight.dtype)
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
        encoded = [self.tokenizer.encode(text) for text in texts]
        rows = [add_special_tokens(self.tokenizer, row, self.context_length) for row in encoded]
        ids = torch.tensor(rows, device=self._tower.table.weight.device)
        if self._tower.cuts_padding:
            around = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
            ids = ids[:, : min(self.room, max(map(len, encoded), default=0)) + around]
        return nn.functional.normalize(self._tower.run(self._tower.table(ids), ids).float(), dim=-1)

    def check_keywords(self) -> None:
        """Check that the text tower can embed keywords.

        Raises:
            UserError: the embedding does not depend on the keywords, or its position depends on their ids.
        """
        self._tower.check_keywords()

    def encode_keywords(self, keywords: Tensor, counts: Tensor | None = None) -> Tensor:
        """Embed keyword vectors between the special tokens with the text transformer. Gradients reach ``keywords``.

        Args:
            keywords: [B, K, subword_dim].
            counts: [B], number of keywords of each utterance; None for K. The end of the text follows the last keyword.

        Returns:
            [B, joint_dim], not normalised.

        Raises:
            UserError: the text tower has fewer positions than K and its special tokens.
        """
        batch, most, _ = keywords.shape
        if most > self.room:
            raise UserError(
                f"model.head.keywords: {most} do not fit into the {self.context_length} positions of CLIP's text "
                "tower, with its special tokens."
                " Choose fewer keywords."
            )
        tokenizer, table, device = self.tokenizer, self._tower.table, keywords.device
        first, around = len(tokenizer.prefix), len(tokenizer.prefix) + len(tokenizer.suffix)
        length = most + around if self._tower.cuts_padding else self.context_length
        ends = (torch.full((batch,), most, device=device) if counts is None else counts) + first  # of the keywords
        at = torch.arange(length, device=device)[None, :]
        # The tower reads ids only to find padding and the end, so one id can stand for every keyword.
        ids = torch.full((batch, length), tokenizer.placeholder, device=device)
        ids = ids.masked_fill(at >= ends[:, None], tokenizer.pad)
        for place, token in enumerate(tokenizer.prefix):
            ids[:, place] = token
        for place, token in enumerate(tokenizer.suffix):
            ids = ids.masked_fill(at == ends[:, None] + place, token)
        embeddings = table(ids)
        inside = nn.functional.pad(keywords.to(embeddings.dtype), (0, 0, first, length - first - most))
        kept = (at >= first) & (at < ends[:, None])
        embeddings = torch.where(kept[:, :, None], inside, embeddings)
        return self._tower.run(embeddings, ids)


def _check_towers(model: Any, text: Any, tokenizer: Tokenizer, tower: TextTower, path: str) -> None:
    """Raise UserError for settings with which open_clip itself gives no embedding."""
    from open_clip import CoCa

    subwords, joint_dim, own = tower.table.num_embeddings, tower.joint_dim, isinstance(tower, OpenClipText)
    if text is model and len(text.positional_embedding) != text.context_length:
        raise UserError(
            f"{path}: text_cfg.embed_cls needs custom_text, without which open_clip cannot run it."
            " Correct the configuration of the folder."
        )
    if subwords < tokenizer.size:
        raise UserError(
            f"{path}: its text tower has {subwords} subwords, but its tokenizer {tokenizer.size}."
            " Use the tokenizer of this model."
        )
    if (
        own
        and getattr(text, "cls_emb", None) is None
        and (getattr(text, "text_pool_type", None) or text.pool_type) == "none"
    ):
        raise UserError(f"{path}: text_cfg.pool_type none gives one vector per subword. One per text is needed.")
    if bool(getattr(model.visual, "output_tokens", False)) != isinstance(model, CoCa):
        raise UserError(
            f"{path}: vision_cfg.output_tokens must be true for CoCa and false for other models."
            " Correct the configuration of the folder."
        )
    width = getattr(model.visual, "output_dim", joint_dim)
    if width != joint_dim:
        raise UserError(
            f"{path}: image embeddings have {width} dimensions, text embeddings {joint_dim}."
            " Use a model with one joint space."
        )


def load_clip(config: ClipConfig) -> OpenClip:
    """Load a CLIP model.

    A folder with ``spm.model`` has a sentencepiece vocabulary. Any other model has OpenAI's BPE or the vocabulary of a
    transformers tokenizer, as open_clip chooses it.

    Args:
        config: ``path`` is a folder of open_clip or transformers, OpenAI's ``.pt`` file, "hf-hub:ID", or open_clip's
            "NAME:PRETRAINED".

    Raises:
        UserError: the model is missing, cannot be read, or has settings that are not supported.
    """
    from speechclip.common.compat import prepare

    prepare()
    import open_clip

    path = config.path
    if not path:
        raise UserError("model.clip.path: not set. Give an open_clip folder, hf-hub:ID or NAME:PRETRAINED.")
    if is_siglip(Path(path)):
        siglip, words, preprocess = load_siglip(Path(path))
        described = {"path": path, "kind": "siglip", "weights": weights_fingerprint(siglip)}
        return OpenClip(siglip, words, preprocess, described)
    if Path(path).is_file() or is_transformers_clip(Path(path)):
        return _load_original(Path(path))
    name, pretrained, folder = _model_name(path)
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True, **_local_text(folder))
    except Exception as error:  # open_clip raises many classes for missing and broken files
        raise UserError(f"{path}: CLIP cannot be loaded: {first_line(error)}") from error
    tokenizer = _tokenizer(name, folder, path)
    description = {"path": path, "kind": "open_clip", "weights": weights_fingerprint(model)}
    return OpenClip(model, tokenizer, preprocess_of(model.visual.preprocess_cfg, path), description)


def _local_text(folder: Path | None) -> dict[str, Any]:
    """Return settings that take the configuration of a transformers text model from the CLIP folder, if it is there.

    The folder itself has its ``config.json``, or a subfolder that ``text_cfg.hf_model_name`` names. Otherwise open_clip
    looks for the name on the hub.
    """
    text = read_json(folder / CLIP_CONFIG)["model_cfg"].get("text_cfg", {}) if folder else {}
    name = text.get("hf_model_name")
    if folder is None or not name:
        return {}
    places = [place for place in (folder / name, folder) if (place / ENCODER_CONFIG).is_file()]
    return {"text_cfg": {**text, "hf_model_name": str(places[0]), "hf_model_pretrained": False}} if places else {}


def _tokenizer(name: str, folder: Path | None, path: str) -> Tokenizer:
    """Return the tokenizer of an open_clip model."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer

    if folder is not None and (folder / "spm.model").is_file():
        return SentencePieceTokenizer(folder / "spm.model")
    try:
        found = open_clip.get_tokenizer(name)
    except Exception as error:  # of transformers, the hub, or a file
        raise UserError(f"{path}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if isinstance(found, (HFTokenizer, SigLipTokenizer)):
        return TransformersTokenizer(found, path)
    if not isinstance(found, SimpleTokenizer):
        raise UserError(f"{path}: its tokenizer {type(found).__name__} is not supported. Use another model.")
    if found.reduction_fn is not None:
        raise UserError(
            f"{path}: text_cfg.tokenizer_kwargs.reduction_mask is for training. Only truncation is supported."
        )
    return BpeTokenizer(found)


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
                raise UserError(f"{settings}: the key model_cfg is missing. Copy or download the file again.")
        except MissingFileError:
            raise UserError(f"{settings}: is missing. A CLIP folder has open_clip's format.") from None
        return f"local-dir:{path}", None, folder
    if path.startswith("hf-hub:"):
        return path, None, None
    name, colon, pretrained = path.partition(":")
    if not colon:
        raise UserError(f"{path}: no such folder. A CLIP is an open_clip folder, hf-hub:ID or NAME:PRETRAINED.")
    return name, pretrained, None

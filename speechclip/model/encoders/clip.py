"""Frozen CLIP: open_clip's towers.

The text transformer is run by hand, so that a cascaded head can enter keyword vectors where subword embeddings stand
(Shih et al. 2022).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.convert.clip import is_transformers_clip, read_clip
from speechclip.model.encoders.base import weights_fingerprint
from speechclip.model.encoders.kernels.linear import freeze_linears
from speechclip.model.encoders.kernels.quick_gelu import replace_quick_gelu
from speechclip.model.encoders.tokenizers import BpeTokenizer, SentencePieceTokenizer, Tokenizer, add_special_tokens

if TYPE_CHECKING:
    from PIL.Image import Image


class ImagePreprocess(NamedTuple):
    """CLIP's image preprocessing: resize the short side, centre crop, normalise. By PIL alone.

    size: pixels of the square the tower wants. mean, std: of each channel. resample: PIL's filter number.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    def __call__(self, image: Image) -> Tensor:
        """An RGB image as [3, size, size] float."""
        width, height = image.size
        short = min(width, height)
        if short != self.size:
            # torchvision truncates the long side
            target = (int(self.size * width / short), int(self.size * height / short))
            image = image.resize(target, resample=self.resample)
        left = round((image.width - self.size) / 2)
        top = round((image.height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)  # [H, W, 3]
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)


class OpenClip(nn.Module):
    """An open_clip model, frozen, with access to its subword embeddings and its text transformer.

    Args:
        model: open_clip's ``CLIP`` (the towers of ``CustomTextCLIP`` keep their text tower under ``text``).
        tokenizer: the text tower's vocabulary.
        preprocess: for images.
        description: what identifies the model.
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
        self.description = description
        text = getattr(model, "text", model)
        for name in ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask"):
            if getattr(text, name, None) is None:
                raise UserError(
                    f"{description['path']}: its text tower has no {name}; a causal CLIP text tower is needed"
                )
        self.context_length: int = int(text.positional_embedding.shape[0])
        self.subword_dim: int = int(text.token_embedding.weight.shape[1])
        projection = text.text_projection
        self.joint_dim: int = (
            self.subword_dim
            if projection is None
            else projection.out_features if isinstance(projection, nn.Linear) else int(projection.shape[1])
        )  # fmt: skip

    def train(self, mode: bool = True) -> OpenClip:
        """Stay in eval mode."""
        return super().train(False)

    @property
    def _text(self) -> Any:
        return getattr(self.model, "text", self.model)

    @property
    def subword_embeddings(self) -> Tensor:
        """The full table of subword embeddings, [vocabulary, subword_dim]."""
        return cast(Tensor, self._text.token_embedding.weight)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """RGB images to [N, joint_dim], L2-normalised."""
        return self.encode_pixels(torch.stack([self.preprocess(image) for image in images]))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Preprocessed images [N, 3, side, side] to [N, joint_dim], L2-normalised."""
        pixels = pixels.to(self.subword_embeddings.device, self.subword_embeddings.dtype)
        return nn.functional.normalize(self.model.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to [N, joint_dim], L2-normalised. Always with the full subword table."""
        rows = [add_special_tokens(self.tokenizer, self.tokenizer.encode(text), self.context_length) for text in texts]
        ends = torch.tensor([row.index(self.tokenizer.eot) for row in rows], device=self.subword_embeddings.device)
        # what follows EOT cannot be seen from it: the mask is causal
        ids = torch.tensor(rows, device=self.subword_embeddings.device)[:, : int(ends.max()) + 1]
        return nn.functional.normalize(self._run_text(self.subword_embeddings[ids], ends).float(), dim=-1)

    def encode_keywords(self, keywords: Tensor, counts: Tensor | None = None) -> Tensor:
        """Keyword vectors [B, K, subword_dim], between SOT and EOT, through the text transformer.

        Gradients flow into ``keywords``. counts: [B], how many of its K an utterance has; EOT stands right after them.
        Returns [B, joint_dim], not normalised.
        Raises UserError where K keywords do not fit into the tower's context.
        """
        batch, most, _ = keywords.shape
        if most + 2 > self.context_length:
            raise UserError(
                f"model.head.keywords: {most} do not fit into the text tower's {self.context_length} positions "
                "with SOT and EOT"
            )
        sot, eot = self.subword_embeddings[[self.tokenizer.sot, self.tokenizer.eot]]
        ends = torch.full((batch,), most, device=keywords.device) if counts is None else counts
        tokens = [sot.expand(batch, 1, -1), keywords.to(sot.dtype), eot.expand(batch, 1, -1)]
        # what follows EOT cannot be seen from it: the mask is causal
        at_end = torch.arange(most + 2, device=keywords.device)[None, :] == ends[:, None] + 1
        return self._run_text(torch.where(at_end[:, :, None], eot, torch.cat(tokens, dim=1)), ends + 1)

    def _run_text(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Subword embeddings [B, S, D] and EOT positions [B] to the unnormalised joint embedding [B, joint_dim]."""
        text, length = self._text, embeddings.shape[1]
        x = embeddings + text.positional_embedding[:length]
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        x = text.ln_final(x)[torch.arange(len(x), device=x.device), ends]
        projection = text.text_projection
        if projection is None:
            return cast(Tensor, x)
        return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)


def load_clip(config: ClipConfig) -> OpenClip:
    """Load the CLIP that ``config.path`` names.

    A folder of open_clip or of transformers, OpenAI's file ``.pt``, "hf-hub:..." or "NAME:PRETRAINED" of open_clip.
    A folder with ``spm.model`` has a sentencepiece vocabulary, any other OpenAI's BPE.
    Raises UserError where it cannot be found or read.
    """
    from speechclip.common.compat import prepare

    prepare()
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    path = config.path
    if not path:
        raise UserError("model.clip.path: not set; give an open_clip folder, hf-hub:ID or NAME:PRETRAINED")
    if Path(path).is_file() or is_transformers_clip(Path(path)):
        model, _ = read_clip(path)
        description = {"path": path, "kind": "open_clip", "weights": weights_fingerprint(model)}
        return OpenClip(model, BpeTokenizer(SimpleTokenizer()), _preprocess_of(model), description)
    name, pretrained, folder = _model_name(path)
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    except Exception as error:  # open_clip raises many classes for one cause: the model cannot be had
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: CLIP cannot be loaded: {reason[0]}") from error
    tokenizer: Tokenizer
    if folder is not None and (folder / "spm.model").is_file():
        tokenizer = SentencePieceTokenizer(folder / "spm.model")
    else:
        found = open_clip.get_tokenizer(name)
        if not isinstance(found, SimpleTokenizer):
            raise UserError(
                f"{path}: its tokenizer {type(found).__name__} is neither CLIP's BPE nor a sentencepiece model"
            )
        tokenizer = BpeTokenizer(found)
    description = {"path": path, "kind": "open_clip", "weights": weights_fingerprint(model)}
    return OpenClip(model, tokenizer, _preprocess_of(model), description)


def _model_name(path: str) -> tuple[str, str | None, Path | None]:
    """open_clip's (model name, pretrained, local folder) for a configured path."""
    folder = Path(path)
    if folder.is_dir():
        settings = folder / "open_clip_config.json"
        try:
            if "model_cfg" not in json.loads(settings.read_text(encoding="utf-8")):
                raise UserError(f"{settings}: no key model_cfg")
        except FileNotFoundError:
            raise UserError(f"{settings}: no such file; a CLIP folder is in open_clip's layout") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{settings}: not a JSON file with a mapping") from error
        return f"local-dir:{path}", None, folder
    if path.startswith("hf-hub:"):
        return path, None, None
    name, colon, pretrained = path.partition(":")
    if not colon:
        raise UserError(f"{path}: no such folder; a CLIP is an open_clip folder, hf-hub:ID or NAME:PRETRAINED")
    return name, pretrained, None


def _preprocess_of(model: Any) -> ImagePreprocess:
    from PIL.Image import Resampling

    settings = model.visual.preprocess_cfg
    size = settings["size"]
    side = int(size if isinstance(size, int) else size[0])
    filters = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}
    return ImagePreprocess(side, tuple(settings["mean"]), tuple(settings["std"]), filters[settings["interpolation"]])

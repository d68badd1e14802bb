"""SigLIP of transformers with the attributes of an open_clip model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn

from speechclip.common.constants import ENCODER_CONFIG, PREPROCESSOR_CONFIG
from speechclip.common.errors import MissingFileError, UserError, first_line
from speechclip.common.files import read_json
from speechclip.model.encoders.preprocess import ImagePreprocess, preprocess_of_transformers
from speechclip.model.encoders.tokenizers import TransformersTokenizer

_KIND = "siglip"
_VARIABLE = "siglip2"  # images of any ratio, cut into patches before the model


class SiglipText(nn.Module):
    """The text tower. It sees all positions, and the last one, usually padding, is the embedding.

    Args:
        model: transformers' ``SiglipTextTransformer``.
    """

    attn_mask = None
    pool_type = "last"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.token_embedding = model.embeddings.token_embedding
        self.position_embedding = model.embeddings.position_embedding
        self.encoder = model.encoder
        self.ln_final = model.final_layer_norm
        self.text_projection = model.head
        self.context_length: int = self.position_embedding.num_embeddings

    @property
    def positional_embedding(self) -> Tensor:
        """The position embeddings, [context_length, D]."""
        return cast(Tensor, self.position_embedding.weight)

    def transformer(self, x: Tensor, attn_mask: None) -> Tensor:
        """Apply the layers to [B, S, D]."""
        return cast(Tensor, self.encoder(inputs_embeds=x).last_hidden_state)


class Siglip(nn.Module):
    """Both towers.

    Args:
        model: transformers' ``SiglipModel``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.vision_model
        self.text = SiglipText(model.text_model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed preprocessed images [N, 3, height, width]: [N, D], not normalised."""
        return cast(Tensor, self.visual(pixel_values=pixels).pooler_output)


def is_siglip(folder: Path) -> bool:
    """Return whether a folder holds a SigLIP of transformers.

    Raises:
        UserError: ``config.json`` cannot be read, or the model has images of variable size.
    """
    config = folder / ENCODER_CONFIG
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind == _VARIABLE:
        raise UserError(
            f"{config}: model type {kind!r}, with images of variable size, is not supported. Use a SigLIP 2 of fixed "
            f"size (model type {_KIND!r}, or a folder of open_clip)."
        )
    return kind == _KIND


def load_siglip(folder: Path) -> tuple[Siglip, TransformersTokenizer, ImagePreprocess]:
    """Load a SigLIP folder of transformers: model, tokenizer and image preprocessing.

    Raises:
        UserError: a part is missing, cannot be read, or has settings that are not supported.
    """
    import transformers

    source = folder / PREPROCESSOR_CONFIG
    if not source.is_file():
        raise MissingFileError(source)
    kind = read_json(source).get("image_processor_type", "SiglipImageProcessor")
    if kind not in ("SiglipImageProcessor", "SiglipImageProcessorFast"):
        raise UserError(f"{source}: image_processor_type is {kind}. Only SiglipImageProcessor is supported.")
    try:
        model = transformers.SiglipModel.from_pretrained(folder, attn_implementation="sdpa")
        processor = transformers.SiglipImageProcessor.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the errors of safetensors, JSON and sentencepiece have no common class
        raise UserError(f"{folder}: SigLIP cannot be loaded: {first_line(error)}") from error
    adapter = Siglip(model.eval())
    side = int(model.config.vision_config.image_size)
    rows = SimpleNamespace(tokenizer=tokenizer, clean_fn=str, context_length=adapter.text.context_length)
    return (
        adapter,
        TransformersTokenizer(rows, str(folder)),
        preprocess_of_transformers(processor, (side, side), str(source)),
    )

"""The settings of a transformers CLIP folder, as open_clip's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechclip.common.constants import PREPROCESSOR_CONFIG
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import read_json

#: Activations of transformers, as open_clip's settings. Two names have the same formula.
_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {},
    "gelu_new": {"approximate": "tanh"},
    "gelu_pytorch_tanh": {"approximate": "tanh"},
}
_END = 49407  # id of EOT in OpenAI's vocabulary
_LEGACY_END = 2  # transformers pools at the largest id if its configuration has this end


def tower_settings(config: Any, settings: dict[str, Any], source: str) -> None:
    """Complete open_clip's ``model_cfg`` with the values that tensors do not show.

    Args:
        config: transformers' ``CLIPConfig``.
        settings: ``model_cfg``; it is changed.
        source: the file of the configuration, for errors.

    Raises:
        UserError: an activation that open_clip does not have.
    """
    vision, text = config.vision_config, config.text_config
    for tower in (vision, text):
        if tower.hidden_act not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UserError(f"{source}: hidden_act is {tower.hidden_act!r}. Supported are {known}.")
    if "quick_gelu" in (vision.hidden_act, text.hidden_act) and vision.hidden_act != text.hidden_act:
        raise UserError(
            f"{source}: hidden_act is quick_gelu in one tower only. open_clip has one for both. Use another CLIP."
        )
    settings["quick_gelu"] = vision.hidden_act == "quick_gelu"
    settings["vision_cfg"]["head_width"] = vision.hidden_size // vision.num_attention_heads
    settings["text_cfg"]["heads"] = text.num_attention_heads
    for tower, target in ((vision, settings["vision_cfg"]), (text, settings["text_cfg"])):
        if tower.intermediate_size != 4 * tower.hidden_size:
            target["mlp_ratio"] = tower.intermediate_size / tower.hidden_size
        if tower.layer_norm_eps != 1e-5:
            target["norm_kwargs"] = {"eps": tower.layer_norm_eps}
        if _ACTIVATIONS[tower.hidden_act]:
            target["act_kwargs"] = _ACTIVATIONS[tower.hidden_act]
    if text.eos_token_id not in (_LEGACY_END, _END):
        settings["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}


def check_vocabulary(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """Check that a transformers folder has OpenAI's vocabulary.

    Args:
        folder: the folder. Without a tokenizer, OpenAI's vocabulary is assumed.
        vocabulary: ids of open_clip's subwords.

    Raises:
        UserError: the folder's vocabulary differs, or cannot be read.
    """
    for name in ("vocab.json", "tokenizer.json"):
        file = folder / name
        if not file.is_file():
            continue
        content = read_json(file)
        found = content if name == "vocab.json" else content.get("model", {}).get("vocab", {})
        own = dict(vocabulary)
        for ours, theirs in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
            own[theirs] = own.pop(ours)
        if found != own:
            raise UserError(f"{file}: not the vocabulary of OpenAI's CLIP. Other vocabularies are not supported.")


def image_processor(folder: Path) -> tuple[Any, str] | None:
    """Return the image processor of a transformers folder and its file; None if the folder has none.

    Raises:
        UserError: it cannot be read, or is not a processor of CLIP.
    """
    files = [folder / name for name in (PREPROCESSOR_CONFIG, "processor_config.json")]
    source = next((file for file in files if file.is_file()), None)
    if source is None:
        return None
    import transformers

    content = read_json(source)
    content = content.get("image_processor", content)
    kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "CLIPImageProcessor"
    if kind not in ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"):
        raise UserError(f"{source}: image_processor_type is {kind}. Only CLIPImageProcessor is supported.")
    if content.get("do_pad"):
        raise UserError(f"{source}: do_pad is not supported. Use another CLIP.")
    try:
        return transformers.CLIPImageProcessor.from_pretrained(folder), str(source)
    except Exception as error:  # whatever a broken setting raises there
        raise UserError(
            f"{source}: not readable as CLIP's image preprocessing: {first_line(error)}. Correct the file."
        ) from error


def open_clip_preprocess(processor: Any, source: str) -> dict[str, Any]:
    """Return the settings of transformers' image processor as open_clip's ``preprocess_cfg``.

    If the margin around the crop is odd, open_clip crops one pixel further than transformers.

    Raises:
        UserError: open_clip has no such preprocessing.
    """
    filters = {2: "bilinear", 3: "bicubic"}
    crop = processor.crop_size["height"], processor.crop_size["width"]
    same = processor.size.get("shortest_edge") == crop[0] == crop[1]
    usual = processor.do_resize and processor.do_center_crop and processor.do_rescale and processor.do_normalize
    if not (same and usual and processor.resample in filters and abs(processor.rescale_factor * 255 - 1) < 1e-6):
        raise UserError(f"{source}: open_clip has no such preprocessing. Use the transformers folder as it is.")
    return {
        "mean": processor.image_mean, "std": processor.image_std, "interpolation": filters[processor.resample],
    }  # fmt: skip

"""OpenAI's original CLIP files and transformers' CLIP folders as open_clip models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.common.constants import CLIP_CONFIG, CLIP_WEIGHTS, ENCODER_CONFIG
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import read_json, write_json
from speechclip.convert.clip_transformers import image_processor, open_clip_preprocess, tower_settings
from speechclip.convert.torchfile import read_torch_file, script_state
from speechclip.convert.unpickle import Record

HEAD_WIDTH = 64  # of every CLIP transformer; OpenAI's files do not hold it
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
}
#: Entries of OpenAI's files that are not weights.
_FACTS = ("input_resolution", "context_length", "vocab_size")


def clip_settings(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return open_clip's ``model_cfg`` of a CLIP with a vision transformer.

    Args:
        tensors: the weights under OpenAI's names.
        source: the file, for errors.

    Raises:
        UserError: the tensors are not those of such a CLIP.
    """
    try:
        patches, position = tensors["visual.conv1.weight"], tensors["visual.positional_embedding"]
        joint, table = tensors["text_projection"].shape[1], tensors["token_embedding.weight"]
        context = tensors["positional_embedding"].shape[0]
        blocks = [
            len({n.removeprefix(tower).split(".")[0] for n in tensors if n.startswith(tower)})
            for tower in ("visual.transformer.resblocks.", "transformer.resblocks.")
        ]
    except KeyError as error:
        raise UserError(
            f"{source}: the tensor {error.args[0]} is missing: not a CLIP with a vision transformer."
            " Use a CLIP with a vision transformer."
        ) from error
    width, size = int(patches.shape[0]), int(patches.shape[-1])
    grid = round((position.shape[0] - 1) ** 0.5)
    text = int(table.shape[1])
    return {
        "embed_dim": int(joint),
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * size,
            "layers": blocks[0],
            "width": width,
            "patch_size": size,
            "head_width": HEAD_WIDTH,
        },
        "text_cfg": {
            "context_length": int(context),
            "vocab_size": int(table.shape[0]),
            "width": text,
            "heads": text // HEAD_WIDTH,
            "layers": blocks[1],
        },
    }


def clip_model(tensors: Mapping[str, Tensor], settings: dict[str, Any], source: str) -> Any:
    """Build an open_clip model in single precision, with its preprocessing.

    Args:
        tensors: the weights under OpenAI's names.
        settings: open_clip's ``model_cfg``.
        source: the file, for errors.

    Raises:
        UserError: a tensor is missing, unknown or of another shape. The message names it.
    """
    from speechclip.common.compat import prepare

    prepare()
    import open_clip

    model = open_clip.model.CLIP(**settings)
    wanted = model.state_dict()
    state = {name: value.float() for name, value in tensors.items() if name not in (*_FACTS, "attn_mask")}
    for name in sorted(set(state) | set(wanted)):
        if name not in wanted or name not in state:
            problem = "is unknown" if name in state else "is missing"
            raise UserError(f"{source}: the tensor {name} of its CLIP {problem}. Copy or download the file again.")
        if state[name].shape != wanted[name].shape:
            raise UserError(
                f"{source}: {name} is {list(state[name].shape)}, but this CLIP needs {list(wanted[name].shape)}."
                " Copy or download the file again."
            )
    model.load_state_dict(state)
    model.visual.preprocess_cfg = {**PREPROCESS, "size": settings["vision_cfg"]["image_size"]}
    return model.eval()


def read_clip(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Read OpenAI's CLIP (TorchScript or a state dict ``.pt``) or a transformers folder.

    Returns:
        The open_clip model and its ``model_cfg``.

    Raises:
        UserError: the file cannot be read.
        UserError: see :func:`clip_model`.
    """
    path = Path(path)
    if path.is_dir():
        tensors, settings = _transformers_folder(path)
    else:
        content = read_torch_file(path)
        if isinstance(content, Record):
            tensors = script_state(content, str(path))
        elif isinstance(content, dict):
            tensors = content.get("state_dict", content)
        else:
            tensors = {}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        settings = clip_settings(tensors, str(path))
    model = clip_model(tensors, settings, str(path))
    model.visual.image_processor = image_processor(path) if path.is_dir() else None
    return model, settings


def save_clip_folder(model: Any, settings: dict[str, Any], folder: Path) -> None:
    """Write an open_clip folder: configuration and weights. Loading it needs no network."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / CLIP_WEIGHTS)
    processor = getattr(model.visual, "image_processor", None)
    preprocess = PREPROCESS if processor is None else open_clip_preprocess(*processor)
    write_json(folder / CLIP_CONFIG, {"model_cfg": settings, "preprocess_cfg": preprocess})


def is_transformers_clip(folder: Path) -> bool:
    """Return whether a folder holds a CLIP of transformers.

    Raises:
        UserError: ``config.json`` cannot be read.
    """
    config = folder / ENCODER_CONFIG
    return config.is_file() and read_json(config).get("model_type") == "clip"


def _transformers_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a transformers CLIP folder under OpenAI's names, and ``model_cfg``."""
    from speechclip.common.compat import prepare

    prepare()
    import transformers

    try:
        model = transformers.CLIPModel.from_pretrained(folder)
    except Exception as error:  # the errors of safetensors, JSON and zip have no common class
        raise UserError(f"{folder}: CLIP cannot be loaded: {first_line(error)}") from error
    given = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    tensors = _openai_names(given, str(folder))
    settings = clip_settings(tensors, str(folder))
    tower_settings(model.config, settings, f"{folder}/config.json")
    return tensors, settings


_TOP = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
_NORMS = {
    "text_model.final_layer_norm.": "ln_final.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
}
_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def _openai_names(given: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return transformers' CLIP tensors under OpenAI's names. The three projections of an attention become one."""
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if name in _TOP:
            found[_TOP[name]] = value
        elif name in ("text_projection.weight", "visual_projection.weight"):
            found["text_projection" if name.startswith("text") else "visual.proj"] = value.T.contiguous()
        elif ".encoder.layers." in name:
            tower, _, rest = name.partition(".encoder.layers.")
            number, _, part = rest.partition(".")
            block = f"{'' if tower == 'text_model' else 'visual.'}transformer.resblocks.{number}."
            if part.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
                continue  # joined to the query's
            if part.startswith("self_attn.q_proj."):
                kind = part.rsplit(".", 1)[1]
                parts = [given[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
                continue
            found[block + _renamed(part, _BLOCK, name, source)] = value
        else:
            found[_renamed(name, _NORMS, name, source)] = value
    return found


def _renamed(part: str, table: Mapping[str, str], name: str, source: str) -> str:
    for old, new in table.items():
        if part.startswith(old):
            return new + part[len(old) :]
    raise UserError(f"{source}: the tensor {name} of its CLIP is unknown. Copy or download the file again.")

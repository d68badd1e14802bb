"""fairseq's HuBERT under transformers' names: checkpoints of fairseq, and the copy inside a SpeechCLIP checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.convert.torchfile import read_torch_file

HEAD_WIDTH = 64  # of every published HuBERT; a file without its settings does not say
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
#: Parts of the pretraining objective, of no use to an encoder.
_PRETRAINING = ("label_embs_concat", "final_proj.weight", "final_proj.bias")
_PARTS = (
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    ("post_extract_proj.", "feature_projection.projection."),
    ("mask_emb", "masked_spec_embed"),
)
_LAYER = (
    ("self_attn_layer_norm.", "layer_norm."),
    ("self_attn.", "attention."),
    ("fc1.", "feed_forward.intermediate_dense."),
    ("fc2.", "feed_forward.output_dense."),
)


def hubert_settings(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """transformers' ``HubertConfig`` arguments of a fairseq model, from its tensors.

    Args:
        tensors: fairseq's names. settings: the file's own ``cfg["model"]``, where it has one; empty else.
        source: for messages.
    Raises:
        UserError: tensors that are no HuBERT's.
    """
    try:
        convolutions = [tensors[f"feature_extractor.conv_layers.{i}.0.weight"] for i in range(len(_STRIDES))]
        position = tensors["encoder.pos_conv.0.weight_v"]
        inner = tensors["encoder.layers.0.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{source}: no tensor {error.args[0]}: not a fairseq HuBERT") from error
    width = int(position.shape[0])
    layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    # the two published shapes: group norm and post-norm layers, layer norms and pre-norm layers
    layered = "feature_extractor.conv_layers.0.2.1.weight" in tensors
    heads = settings.get("encoder_attention_heads", width // HEAD_WIDTH)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{source}: {heads} attention heads for a width of {width}")
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": int(inner),
        "conv_dim": [int(weight.shape[0]) for weight in convolutions],
        "conv_kernel": [int(weight.shape[2]) for weight in convolutions], "conv_stride": list(_STRIDES),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in tensors,
        "feat_extract_norm": "layer" if layered else "group",
        "do_stable_layer_norm": bool(settings.get("layer_norm_first", layered)),
        "num_conv_pos_embeddings": int(position.shape[2]),
        "num_conv_pos_embedding_groups": width // int(position.shape[1]),
    }  # fmt: skip


def transformers_name(name: str, layered: bool) -> str:
    """transformers' name of a fairseq tensor. layered: layer norms in the convolutions (Large)."""
    for old, new in _PARTS:
        if name.startswith(old):
            return new + name[len(old) :]
    if name.startswith("layer_norm."):
        return f"feature_projection.{name}"
    words = name.split(".")
    if name.startswith("encoder.layers."):
        rest = ".".join(words[3:])
        for old, new in _LAYER:
            if rest.startswith(old):
                rest = new + rest[len(old) :]
                break
        return ".".join([*words[:3], rest])
    if name.startswith("feature_extractor.conv_layers."):
        if words[3] == "0":
            return ".".join([*words[:3], "conv", words[4]])
        norm = ["2", "1"] if layered else ["2"]
        if words[3:-1] == norm:
            return ".".join([*words[:3], "layer_norm", words[-1]])
    return name


def hubert_model(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> Any:
    """A transformers ``HubertModel`` with fairseq's weights; every tensor is used, or one of the pretraining's.

    Raises:
        UserError: a tensor that is missing, unknown or of another shape, naming it.
    """
    from speechclip.common.compat import prepare

    prepare()
    import transformers

    shape = hubert_settings(tensors, settings, source)
    layered = shape["feat_extract_norm"] == "layer"
    model = transformers.HubertModel(transformers.HubertConfig(**shape))
    wanted = model.state_dict()
    state = {
        transformers_name(name, layered): value.to(wanted["encoder.layer_norm.weight"].dtype)
        for name, value in tensors.items()
        if name not in _PRETRAINING
    }
    for name, value in state.items():
        if name not in wanted:
            raise UserError(f"{source}: unknown tensor {name} in its HuBERT")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{source}: {name} is {list(value.shape)}, a HuBERT of its shape has {list(wanted[name].shape)}"
            )
    missing = sorted(set(wanted) - set(state) - {"masked_spec_embed"})
    if missing:
        raise UserError(f"{source}: no tensor for {missing[0]} of its HuBERT")
    model.load_state_dict(state, strict=False)  # what may be missing is the mask of pretraining
    return model.eval()


def read_hubert(path: str | Path) -> tuple[Any, bool]:
    """A fairseq HuBERT checkpoint ``.pt``: the transformers model, and whether its input is normalised.

    Raises UserError: see :func:`hubert_model`; no fairseq checkpoint, or one that was fine-tuned.
    """
    content = read_torch_file(path)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: not a fairseq checkpoint: no tensors under 'model'")
    if any(name.startswith("w2v_encoder.") for name in tensors):
        raise UserError(f"{path}: a fine-tuned checkpoint; the pretrained HuBERT is needed")
    settings, task = _section(content, "model"), _section(content, "task")
    model = hubert_model(tensors, settings, str(path))
    layered = model.config.feat_extract_norm == "layer"
    return model, bool(task.get("normalize", layered))


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the checkpoint's own configuration, empty where it has none (``args`` of older files is flat)."""
    cfg = content.get("cfg")
    section = cfg.get(name) if isinstance(cfg, dict) else content.get("args")
    if isinstance(section, dict) and isinstance(section.get("_content"), dict):  # an omegaconf container
        section = {key: _plain(value) for key, value in section["_content"].items()}
    return section if isinstance(section, dict) else {}


def _plain(value: Any) -> Any:
    """The value in an omegaconf node that was read as a dictionary of its attributes."""
    return value["_val"] if isinstance(value, dict) and "_val" in value else value

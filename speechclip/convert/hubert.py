"""fairseq's HuBERT or wav2vec 2.0 as a model of transformers, from fairseq's files and from SpeechCLIP checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.convert.torchfile import read_torch_file

HEAD_WIDTH = 64  # of every published HuBERT; a file without settings does not hold it
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
#: Parts of the pretraining objective. An encoder does not need them.
_PRETRAINING = ("label_embs_concat", "final_proj.weight", "final_proj.bias")
_PRETRAINING_PARTS = ("quantizer.", "project_q.")  # of wav2vec 2.0
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
    """Return the arguments of transformers' ``HubertConfig`` for a fairseq model.

    Args:
        tensors: the weights under fairseq's names.
        settings: the file's ``cfg["model"]``; empty if the file does not have it.
        source: the file, for errors.

    Raises:
        UserError: the tensors are not those of a HuBERT.
    """
    try:
        convolutions = [tensors[f"feature_extractor.conv_layers.{i}.0.weight"] for i in range(len(_STRIDES))]
        position = tensors["encoder.pos_conv.0.weight_v"]
        inner = tensors["encoder.layers.0.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"{source}: the tensor {error.args[0]} is missing: not a fairseq HuBERT. Use a HuBERT of fairseq."
        ) from error
    width = int(position.shape[0])
    layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    # Two variants were published: group norm with post-norm layers, and LayerNorms with pre-norm layers.
    layered = "feature_extractor.conv_layers.0.2.1.weight" in tensors
    heads = settings.get("encoder_attention_heads", width // HEAD_WIDTH)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{source}: {heads} attention heads do not divide the width {width}. Copy or download the file again."
        )
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
    """Return transformers' name of a fairseq tensor.

    Args:
        name: fairseq's name.
        layered: whether the convolutions have LayerNorms (Large).
    """
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
    """Return a transformers ``HubertModel`` with fairseq's weights. Only tensors of the pretraining are not used.

    Args:
        tensors, settings, source: see :func:`hubert_settings`.

    Raises:
        UserError: a tensor is missing, unknown or of another shape. The message names it.
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
        if name not in _PRETRAINING and not name.startswith(_PRETRAINING_PARTS)
    }
    for name, value in state.items():
        if name not in wanted:
            raise UserError(f"{source}: unknown tensor {name} in its HuBERT. Copy or download the file again.")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{source}: {name} is {list(value.shape)}, but a HuBERT of this width needs {list(wanted[name].shape)}."
                " Copy or download the file again."
            )
    missing = sorted(set(wanted) - set(state) - {"masked_spec_embed"})
    if missing:
        raise UserError(
            f"{source}: the tensor for {missing[0]} of its HuBERT is missing. Copy or download the file again."
        )
    model.load_state_dict(state, strict=False)  # only the mask of the pretraining may be missing
    return model.eval()


def convolutions_model(tensors: Mapping[str, Tensor], source: str) -> Any:
    """Return a transformers ``HubertModel`` with the waveform convolutions of a Base model, and no other part in use.

    Args:
        tensors: the convolutions under fairseq's names, below "feature_extractor.".
        source: the file, for errors.

    Raises:
        UserError: a tensor is missing, unknown or of another shape. The message names it.
    """
    from speechclip.common.compat import prepare

    prepare()
    import transformers

    state = {
        transformers_name(f"feature_extractor.{name}", False).removeprefix("feature_extractor."): value
        for name, value in tensors.items()
    }
    weights = [state.get(f"conv_layers.{i}.conv.weight") for i in range(len(_STRIDES))]
    missing = next((i for i, weight in enumerate(weights) if weight is None or weight.ndim != 3), None)
    if missing is not None:
        raise UserError(
            f"{source}: the convolution feature_extractor.conv_layers.{missing}.0.weight is missing."
            " Copy or download the file again."
        )
    found = [weight for weight in weights if weight is not None]
    config = transformers.HubertConfig(
        hidden_size=HEAD_WIDTH, num_hidden_layers=1, num_attention_heads=1, intermediate_size=HEAD_WIDTH,
        conv_dim=[int(weight.shape[0]) for weight in found], conv_kernel=[int(weight.shape[2]) for weight in found],
        conv_stride=list(_STRIDES), conv_bias="conv_layers.0.conv.bias" in state, feat_extract_norm="group",
    )  # fmt: skip
    model = transformers.HubertModel(config)
    wanted = model.feature_extractor.state_dict()
    for name in sorted(wanted.keys() ^ state.keys()):
        raise UserError(
            f"{source}: {name} of the waveform convolutions is {'missing' if name in wanted else 'unknown'}."
            " Copy or download the file again."
        )
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} is {list(state[name].shape)}, not {list(value.shape)}."
                " Copy or download the file again."
            )
    model.feature_extractor.load_state_dict(state)
    return model.eval()


def read_hubert(path: str | Path) -> tuple[Any, bool]:
    """Read a fairseq HuBERT checkpoint ``.pt``.

    Returns:
        The transformers model, and whether its input is normalised.

    Raises:
        UserError: not a fairseq checkpoint, or a fine-tuned one.
        UserError: see :func:`hubert_model`.
    """
    content = read_torch_file(path)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: not a fairseq checkpoint: 'model' is missing. Use a HuBERT of fairseq.")
    if any(name.startswith("w2v_encoder.") for name in tensors):
        raise UserError(f"{path}: a fine-tuned checkpoint. Give the pretrained HuBERT.")
    settings, task = _section(content, "model"), _section(content, "task")
    model = hubert_model(tensors, settings, str(path))
    layered = model.config.feat_extract_norm == "layer"
    return model, bool(task.get("normalize", layered))


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of the checkpoint's configuration, empty if it is missing. ``args`` of older files is flat."""
    cfg = _unwrapped(content.get("cfg"))
    section = _unwrapped(cfg.get(name) if isinstance(cfg, dict) else content.get("args"))
    return {key: _unwrapped(value) for key, value in section.items()} if isinstance(section, dict) else {}


def _unwrapped(value: Any) -> Any:
    """Return the content of an omegaconf container or node that was read as a dictionary of its attributes."""
    if isinstance(value, dict):
        if isinstance(value.get("_content"), dict):
            return value["_content"]
        return value.get("_val", value)
    return value

"""The module of sentence-transformers that a packed model names in its modules.json (extra ``mteb``).

``SentenceTransformer(PACK, trust_remote_code=True)`` then encodes recordings, images and texts into one space. Version
6 of sentence-transformers requires ``trust_remote_code=True`` for modules outside its own package; version 5.7 warns
without it. Nothing is downloaded: the class is the one of the installed speechclip.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers.base.modality import infer_batch_modality
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import load_dir_path
from torch import Tensor

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import WEIGHTS
from speechclip.common.errors import UserError
from speechclip.common.files import replace_folder
from speechclip.data.images import as_image
from speechclip.data.waveforms import as_wave


class SpeechClipModule(InputModule):
    """SpeechCLIP as the only module of a ``SentenceTransformer``.

    Args:
        model: the model.
        folder: the pack that it was loaded from.
        branch: "parallel" or "cascaded" for a hybrid head; None for the first branch of the head.
    """

    def __init__(self, model: SpeechCLIP, folder: Path, branch: str | None = None) -> None:
        super().__init__()
        if branch is not None and branch not in model.branches:
            raise UserError(f"branch: {branch!r} is unknown. The head has {' and '.join(model.branches)}.")
        self.network = model.network  # a submodule, so that SentenceTransformer.to() moves it
        self._model, self._folder, self._branch = model, folder, branch

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", token: bool | str | None = None,
        cache_folder: str | None = None, revision: str | None = None, local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> SpeechClipModule:  # fmt: skip
        """Load a pack. sentence-transformers calls this method.

        Args:
            model_name_or_path: the pack, or its id on the hub.
            subfolder: folder of the module inside the pack: "".
            token: access token of the hub.
            cache_folder: folder of downloads.
            revision: revision on the hub.
            local_files_only: do not download.
            model_kwargs: {"branch": ...} selects the branch of a hybrid head.
            kwargs: settings of other modules, which this one does not need.

        Raises:
            UserError: the pack is missing or damaged, or the branch is unknown.
        """
        path = load_dir_path(
            model_name_or_path, subfolder, token=token, cache_folder=cache_folder, revision=revision,
            local_files_only=local_files_only,
        )  # fmt: skip
        if path is None:
            raise UserError(f"{model_name_or_path}: is missing. Give a pack or its id on the hub.")
        settings = dict(model_kwargs or {})
        branch = settings.pop("branch", None)
        if settings:
            raise UserError(f"model_kwargs: {min(settings)!r} is unknown (known: branch). Choose a known one.")
        return cls(SpeechCLIP.from_pretrained(path), Path(path), branch)

    @property
    def modalities(self) -> list[Any]:
        """The kinds of inputs: without CLIP only audio."""
        return ["audio"] if self.network.clip is None else ["audio", "image", "text"]

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Decode a batch of one modality.

        Args:
            inputs: recordings (a path, an array at 16 kHz, or {"array", "sampling_rate"}), images or texts.
            prompt: text in front of each text.
            kwargs: settings of other modules, which this one does not need.

        Returns:
            {"modality": ..., "items": list of waves [n], PIL images or strings}.

        Raises:
            UserError: an input cannot be read, or the batch has several modalities.
        """
        modality = infer_batch_modality(inputs, supported_modalities=self.modalities)
        if modality not in self.modalities:
            raise UserError(
                f"inputs: {modality} is not one of {', '.join(self.modalities)}. Encode each kind by itself."
            )
        items = [item[modality] if isinstance(item, dict) and set(item) == {modality} else item for item in inputs]
        if modality == "audio":
            items = [as_wave(item, f"inputs[{number}]") for number, item in enumerate(items)]
        elif modality == "image":
            items = [as_image(item, f"inputs[{number}]") for number, item in enumerate(items)]
        elif prompt:
            items = [prompt + item for item in items]
        return {"modality": modality, "items": items}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Tensor | Any]:
        """Add "sentence_embedding" [B, J], L2-normalised, to a preprocessed batch."""
        modality, items = features["modality"], features["items"]
        if modality == "audio":
            embedding = self._model.encode_speech(items, self._branch)
        elif modality == "image":
            embedding = self._model.encode_image(items)
        else:
            embedding = self._model.encode_text(items)
        return {**features, "sentence_embedding": embedding}

    def get_embedding_dimension(self) -> int:
        """Return J, the width of the joint space."""
        return self.network.dimensions.joint

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the pack with the present weights. ``SentenceTransformer.save`` calls this method."""
        target = Path(output_path)
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.trained_state().items()}

        def write(part: Path) -> None:
            for source in (self._folder, target):  # sentence-transformers has already written files to the target
                shutil.copytree(source, part, dirs_exist_ok=True)
            save_file(state, part / WEIGHTS, metadata={"format": "speechclip"})

        replace_folder(target, write)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings that ``repr`` shows."""
        return {"head": self.network.config.head.name, "branch": self._branch or self._model.branches[0]}

    def train(self, mode: bool = True) -> SpeechClipModule:
        """Keep eval mode: the encoders are frozen and the head is trained by the recipes."""
        super().train(False)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._model.device

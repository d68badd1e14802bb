"""Any speech recogniser of transformers: Whisper and other sequence-to-sequence models, and CTC models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speechclip.common.compat import prepare
from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.devices import pick_device
from speechclip.common.errors import UserError, first_line
from speechclip.data.dataset import Batch
from speechclip.model.encoders.base import weights_fingerprint
from speechclip.model.recognizers.base import Recognizer, waves_of

CHUNK_SECONDS = 30.0  # longer recordings are recognised in overlapping chunks of this length
STRIDE_SECONDS = 5.0  # overlap of the chunks on each side


class TransformersRecognizer(Recognizer):
    """A recogniser of transformers behind its own pipeline, which cuts long recordings and joins the texts.

    Whisper decodes recordings of more than 30 s window by window with its timestamps. A CTC model reads overlapping
    chunks.

    Args:
        path: folder or hub id.
        batch_size: utterances or chunks at a time.
    Raises:
        UserError: the model cannot be loaded, or is not a speech recogniser.
    """

    def __init__(self, path: str, batch_size: int = 16) -> None:
        prepare()
        import transformers

        transformers.logging.set_verbosity_error()
        try:
            self._pipeline: Any = transformers.pipeline(
                "automatic-speech-recognition", model=path, device=pick_device(), dtype=torch.float32
            )
        except Exception as error:  # the errors of safetensors, zip, JSON and the hub have no common class
            raise UserError(f"{path}: the speech recogniser cannot be loaded: {first_line(error)}") from error
        self.name = Path(path).name
        self.batch_size = batch_size
        model = self._pipeline.model
        self._ctc = self._pipeline.type != "seq2seq" and self._pipeline.type != "seq2seq_whisper"
        self._whisper = self._pipeline.type == "seq2seq_whisper"
        if self._pipeline.tokenizer is None or self._pipeline.feature_extractor is None:
            raise UserError(f"{path}: has no tokenizer or preprocessor_config.json. It is not a speech recogniser.")
        rate = int(self._pipeline.feature_extractor.sampling_rate)
        if rate != SAMPLE_RATE:
            raise UserError(f"{path}: reads audio at {rate} Hz; {SAMPLE_RATE} Hz are needed. Use another recogniser.")
        if self._pipeline.tokenizer.pad_token is None:  # the pipeline needs one for batches
            self._pipeline.tokenizer.pad_token = self._pipeline.tokenizer.eos_token
        if self._ctc and not getattr(self._pipeline.feature_extractor, "return_attention_mask", False):
            self.batch_size = 1  # such a model (group norm, no mask) reads the padding of a batch as speech
        kind = str(model.config.model_type)
        self.description = {"path": path, "kind": kind, "weights": weights_fingerprint(model)}

    def transcribe(self, batch: Batch) -> list[str]:
        """Return the transcripts of the waveforms of a batch."""
        waves = waves_of(batch, self.name)
        limit = CHUNK_SECONDS * SAMPLE_RATE
        # a sequence-to-sequence model decodes a long recording alone, window by window
        alone = {at for at, wave in enumerate(waves) if len(wave) > limit and not self._ctc}
        together = [at for at in range(len(waves)) if at not in alone]
        texts = dict(zip(together, self._run([waves[at] for at in together], long=False)))
        for at in alone:
            texts[at] = self._run([waves[at]], long=True)[0]
        return [texts[at] for at in range(len(waves))]

    @torch.no_grad()
    def _run(self, waves: list[torch.Tensor], *, long: bool) -> list[str]:
        """Return the transcripts of recordings. long: the model decodes them window by window."""
        if not waves:
            return []
        options: dict[str, Any] = {"batch_size": 1 if long else self.batch_size}
        if self._ctc:
            options |= {"chunk_length_s": CHUNK_SECONDS, "stride_length_s": STRIDE_SECONDS}
        elif long:
            options |= {"return_timestamps": True} if self._whisper else {"chunk_length_s": CHUNK_SECONDS}
        items = [{"raw": wave.cpu().numpy(), "sampling_rate": SAMPLE_RATE} for wave in waves]
        return [" ".join(str(item["text"]).split()) for item in self._pipeline(items, **options)]

"""Golden hidden states of the s3prl upstream. Weights and waveforms come from formulas, not from a random generator.

python test/upstream/golden.py     writes golden.json with the values of the current code
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fixtures import whole_model

from speechclip.api import SpeechCLIP  # noqa: E402

FILE = Path(__file__).with_name("golden.json")
HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
CASES = [(head, large) for head in HEADS for large in (False, True)]
LENGTHS = (6400, 4000, 900)


def waves() -> list[torch.Tensor]:
    """A batch of three sums of sines, 0.4 s, 0.25 s and 0.06 s."""
    times = [torch.arange(n, dtype=torch.float64) / 16000 for n in LENGTHS]
    return [sum(0.1 * torch.sin(f * (i + 1) * t) for f in (700.0, 1900.0, 5300.0)).float() for i, t in enumerate(times)]


def fill(module: torch.nn.Module) -> None:
    """Fill every parameter with values that depend on its name and position. LayerNorm weights stay around one."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(module.named_parameters())):
            phase = torch.arange(parameter.numel(), dtype=torch.float64) * (0.71 + 0.013 * (index % 17)) + index
            value = 0.25 * torch.sin(phase).view(parameter.shape)
            if "norm" in name and name.endswith("weight"):
                value = 1 + value
            parameter.copy_(value)


def model_of(folder: Path, head: str, large: bool) -> Any:
    """A tiny SpeechCLIP with the weights of :func:`fill`."""
    model, _ = whole_model(folder, head, large=large)
    for part in (model.speech_encoder, model.weighted_sum, model.head):
        fill(part)
    return SpeechCLIP(model)


def sample(states: list[torch.Tensor]) -> list[list[float]]:
    """A few values of each state, [states, values]: all utterances, every third frame, every seventh dimension."""
    return [np.round(state[:, ::3, ::7].double().flatten().numpy(), 6).tolist() for state in states]


def main() -> None:
    """Write the file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        values = {
            f"{head}-{'large' if large else 'base'}": sample(
                model_of(Path(folder), head, large).hidden_states(waves())[0]
            )
            for head, large in CASES
        }
    FILE.write_text(json.dumps(values).replace("], [", "],\n [") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

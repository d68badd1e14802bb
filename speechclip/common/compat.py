"""Make torchvision and torchaudio importable next to a CPU build of torch.

The default Linux builds of torchvision and torchaudio are compiled for CUDA. Their native parts do not load next to a
CPU build of torch. Then the Python parts fail on import, and so do transformers and open_clip. This project does not
use the native operators, so it is enough to declare their names. Installed files are not changed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

_NMS = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_QNMS = "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[Any] = []  # torch drops the declarations when their Library object is collected


def prepare() -> None:
    """Prepare the first import of transformers, open_clip, torchaudio or s3prl.

    It can be called more than once. It does nothing for a CUDA build of torch, for CPU builds of torchvision and
    torchaudio, and for packages that are missing or already imported.
    """
    import torch

    if torch.version.cuda is not None:
        return
    if _built_for_cuda("torchvision") and not _libraries:  # looking for the package may have called this function
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(_NMS)
        library.define(_QNMS)
        _libraries.append(library)
    if _built_for_cuda("torchaudio"):
        sys.modules["torchaudio._extension"] = _silent_extension()


def _built_for_cuda(package: str) -> bool:
    """Return whether the version file of an installed package, not imported yet, names a CUDA build."""
    if package in sys.modules:
        return False
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and re.search(r"^__version__ = .*\+cu\d+", version.read_text(), re.MULTILINE) is not None


def _silent_extension() -> types.ModuleType:
    """Return a stand-in for ``torchaudio._extension`` that reports no native code."""
    module = types.ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    module._IS_RIR_AVAILABLE = False  # type: ignore[attr-defined]
    module._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    module.lazy_import_sox_ext = lambda: None  # type: ignore[attr-defined]

    def fail_if_no_align(function: Any) -> Any:
        return function

    module.fail_if_no_align = fail_if_no_align  # type: ignore[attr-defined]
    return module

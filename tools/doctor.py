"""The checks of tools/doctor: one line each, ok / MISSING / BROKEN, with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "tools/install.sh"
EXTRA_OF_SECTION = {f"extra: {name}": name for name in ("s3prl", "fairseq", "search", "dev")}
LEAST_FREE_GB = 5.0

problems: list[str] = []


def line(state: str, what: str, mend: str = "") -> None:
    """Print one check's line; anything but "ok" and "-" (not asked for) counts as a problem."""
    print(f"{state:<8} {what}" + (f"; mend: {mend}" if mend else ""), flush=True)
    if state not in ("ok", "-"):
        problems.append(what)


def attempt(what: str, check: Callable[[], str], mend: str) -> None:
    """Run a check that returns what it found, or raises."""
    try:
        line("ok", f"{what}: {check()}")
    except ModuleNotFoundError as error:
        line("MISSING", f"{what}: {error.name}", mend)
    except Exception as error:  # noqa: BLE001 # whatever a broken package raises is what is to be told
        line("BROKEN", f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:160]}", mend)


def installed_extras() -> set[str]:
    """Extras that tools/install.sh put into this environment."""
    stamp = Path(sys.prefix) / ".speechclip"
    if not stamp.is_file():
        return set()
    words = [row.split()[1:] for row in stamp.read_text().splitlines() if row.startswith("extras")]
    return set(words[0]) if words else set()


def pins() -> list[tuple[str, str, str]]:
    """(package, pinned version, extra or "") of every line of constraints.txt that holds for this Python."""
    rows, extra = [], ""
    for row in (ROOT / "tools" / "constraints.txt").read_text().splitlines():
        if row.startswith("#"):
            extra = EXTRA_OF_SECTION.get(row.lstrip("# "), extra)
            continue
        requirement, _, marker = (part.strip() for part in row.partition(";"))
        older = sys.version_info < (3, 11)
        if "==" in requirement and (not marker or older == ("<" in marker)):
            name, _, version = requirement.partition("==")
            rows.append((name, version, extra))
    return rows


def check_python() -> None:
    """The interpreter and where it stands."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    line(
        "ok" if good else "BROKEN",
        f"python {version} ({sys.executable})",
        "" if good else f"{INSTALL} --python python3.11",
    )
    if sys.prefix == sys.base_prefix:
        line("BROKEN", "environment: this Python is not in a virtual environment", INSTALL)
    elif (Path(sys.prefix) / ".speechclip").is_file():
        line("ok", f"environment {sys.prefix} (extras: {' '.join(sorted(installed_extras())) or 'none'})")
    elif Path(sys.prefix) == ROOT / "tools" / "venv":
        line("BROKEN", f"environment {sys.prefix}: its installation did not finish", INSTALL)
    else:
        line("ok", f"environment {sys.prefix} (not made by tools/install.sh)")


def check_packages() -> None:
    """Every pinned package against its pin."""
    have, absent = installed_extras(), set()
    for name, wanted, extra in pins():
        mend = f'{INSTALL} --extras "{extra}"' if extra else INSTALL
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra and extra not in have:
                absent.add(extra)
            else:
                line("MISSING", f"{name} {wanted}", f"rm tools/venv/.speechclip; {mend}")
            continue
        good = version.split("+")[0] == wanted
        line(
            "ok" if good else "BROKEN",
            f"{name} {version}" + ("" if good else f" is not {wanted}"),
            "" if good else f'{sys.executable} -m pip install "{name}=={wanted}"',
        )
    for extra in sorted(absent):
        line("-", f'extra {extra} is not installed: {INSTALL} --extras "{extra}" adds it')


def torch_and_torchvision() -> str:
    """Both in one process: a CPU torch beside a CUDA torchvision needs speechclip.common.compat."""
    from speechclip.common.compat import prepare

    prepare()
    import torch
    import torchvision

    return f"torch {torch.__version__} and torchvision {torchvision.__version__} import together"


def check_cuda() -> None:
    """Whether a GPU that is there can be used."""
    import torch

    gpu = shutil.which("nvidia-smi") is not None and subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=False
    ).stdout.startswith("GPU")
    if not gpu:
        line("ok", "no NVIDIA GPU: computing on the CPU")
    elif torch.version.cuda is None:
        line("BROKEN", "an NVIDIA GPU is here, but torch is a CPU build", f"{INSTALL} --device cuda")
    elif not torch.cuda.is_available():
        line(
            "BROKEN",
            f"an NVIDIA GPU is here, but torch (CUDA {torch.version.cuda}) does not see it",
            "nvidia-smi (is the driver new enough?)",
        )
    else:
        line("ok", f"{torch.cuda.device_count()} GPU: {torch.cuda.get_device_name(0)}")


def read_flac() -> str:
    """Write and read a FLAC in memory."""
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(160, dtype=np.float32), 16000, format="FLAC")
    buffer.seek(0)
    samples, rate = soundfile.read(buffer)
    return f"{len(samples)} samples at {rate} Hz"


def load_espeak() -> str:
    """Load the library the mini recipe speaks with."""
    import ctypes

    import espeakng_loader

    path = espeakng_loader.get_library_path()
    ctypes.CDLL(path)
    return Path(path).name


def check_files() -> None:
    """The mini recipe's models, and room on the disk."""
    for name, weights in (("hubert", "model.safetensors"), ("clip", "open_clip_model.safetensors")):
        folder = Path("egs/mini/models") / name
        for file in ("config.json" if name == "hubert" else "open_clip_config.json", weights):
            if not (ROOT / folder / file).is_file():
                line(
                    "MISSING",
                    f"{folder / file}",
                    "git checkout egs/mini/models (or cd egs/mini && ./run.sh --pretrain true)",
                )
                break
        else:
            line("ok", f"{folder}")
    free = shutil.disk_usage(ROOT).free / 1e9
    good = free >= LEAST_FREE_GB
    line(
        "ok" if good else "BROKEN",
        f"{free:.0f} GB free on the disk of {ROOT}",
        "" if good else f"free {LEAST_FREE_GB:.0f} GB",
    )
    if not os.access(ROOT / "egs", os.W_OK):
        line("BROKEN", f"{ROOT / 'egs'} cannot be written to", f"chown -R $USER {ROOT}")


def main() -> int:
    """All checks."""
    check_python()
    check_packages()
    attempt("import", torch_and_torchvision, INSTALL)
    if not any("import" in problem for problem in problems):
        check_cuda()
    attempt("flac through soundfile", read_flac, f"{sys.executable} -m pip install --force-reinstall soundfile")
    attempt("espeak-ng library", load_espeak, f"{sys.executable} -m pip install --force-reinstall espeakng-loader")
    check_files()
    print(f"{len(problems)} problems" if problems else "all is well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks of tools/doctor: one line each, ok, MISSING or BROKEN, with the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "tools/install.sh"
EXTRA_OF_SECTION = {f"extra: {name}": name for name in ("s3prl", "fairseq", "search", "asr", "mteb", "regions", "dev")}
LEAST_FREE_GB = 5.0
SHIPPED = {
    "hubert": ("config.json", "model.safetensors"),
    "clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "hybrid": ("config.yaml", "model.safetensors", "vocabulary.tsv"),
    "demo": ("queries.tsv", "index/vectors.npy"),
}

problems: list[str] = []


def line(state: str, what: str, fix: str = "") -> None:
    """Print the line of a check. Every state but "ok" and "-" (not installed on purpose) counts as a problem."""
    print(f"{state:<8} {what}" + (f". Fix: {fix}" if fix else ""), flush=True)
    if state not in ("ok", "-"):
        problems.append(what)


def attempt(what: str, check: Callable[[], str], fix: str) -> None:
    """Run a check, which returns a description or raises an error."""
    try:
        line("ok", f"{what}: {check()}")
    except ModuleNotFoundError as error:
        line("MISSING", f"{what}: {error.name}", fix)
    except Exception as error:  # noqa: BLE001 # a broken package may raise anything
        line("BROKEN", f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:160]}", fix)


def installed_extras() -> set[str]:
    """Return the extras that tools/install.sh added to this environment."""
    stamp = Path(sys.prefix) / ".speechclip"
    if not stamp.is_file():
        return set()
    words = [row.split()[1:] for row in stamp.read_text().splitlines() if row.startswith("extras")]
    return set(words[0]) if words else set()


def pins() -> list[tuple[str, str, str]]:
    """Return (package, pinned version, extra or "") for every line of constraints.txt for this Python."""
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
    """Check the interpreter and its environment."""
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
        line("BROKEN", f"environment {sys.prefix}: the installation did not finish", INSTALL)
    else:
        line("ok", f"environment {sys.prefix} (not made by tools/install.sh)")


def check_packages() -> None:
    """Compare every pinned package with its pin."""
    have, absent = installed_extras(), set()
    for name, wanted, extra in pins():
        fix = f'{INSTALL} --extras "{extra}"' if extra else INSTALL
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra and extra not in have:
                absent.add(extra)
            else:
                line("MISSING", f"{name} {wanted}", f"rm tools/venv/.speechclip; {fix}")
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
    """Import both in one process. A CPU torch with a CUDA torchvision needs speechclip.common.compat."""
    from speechclip.common.compat import prepare

    prepare()
    import torch
    import torchvision

    return f"torch {torch.__version__} and torchvision {torchvision.__version__} import together"


def check_cuda() -> None:
    """Check that torch can use the GPU of the machine."""
    import torch

    gpu = shutil.which("nvidia-smi") is not None and subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=False
    ).stdout.startswith("GPU")
    if not gpu:
        line("ok", "no NVIDIA GPU: the CPU is used")
    elif torch.version.cuda is None:
        line("BROKEN", "the machine has an NVIDIA GPU, but torch is a CPU build", f"{INSTALL} --device cuda")
    elif not torch.cuda.is_available():
        line(
            "BROKEN",
            f"the machine has an NVIDIA GPU, but torch (CUDA {torch.version.cuda}) cannot use it",
            "install a newer NVIDIA driver (nvidia-smi prints its version)",
        )
    else:
        line("ok", f"{torch.cuda.device_count()} GPU: {torch.cuda.get_device_name(0)}")


def read_flac() -> str:
    """Write and read a FLAC file in memory."""
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(160, dtype=np.float32), 16000, format="FLAC")
    buffer.seek(0)
    samples, rate = soundfile.read(buffer)
    return f"{len(samples)} samples at {rate} Hz"


def load_espeak() -> str:
    """Load the speech synthesis of the mini recipe."""
    import ctypes

    import espeakng_loader

    path = espeakng_loader.get_library_path()
    ctypes.CDLL(path)
    return Path(path).name


def import_s3prl() -> str:
    """Import s3prl in new processes: after speechclip.upstream, and alone."""
    failures = []
    for first in ("import speechclip.upstream; ", ""):
        code = f"{first}from s3prl.nn import S3PRLUpstream"
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        failures.append(ended.stderr.strip().splitlines()[-1][:100] if ended.returncode else "")
    if failures[0]:
        raise ImportError(failures[0])
    return f"only after `import speechclip.upstream`; alone: {failures[1]}" if failures[1] else "import works"


def check_files() -> None:
    """Check the models of the mini recipe, the free disk space and write access."""
    for name, files in SHIPPED.items():
        folder = Path("egs/mini/models") / name
        missing = [folder / file for file in files if not (ROOT / folder / file).is_file()]
        if missing:
            line("MISSING", f"{missing[0]}", "git checkout egs/mini/models")
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
        line("BROKEN", f"{ROOT / 'egs'} is not writable", f"chown -R $USER {ROOT}")


def main() -> int:
    """Run all checks and return the exit status."""
    check_python()
    check_packages()
    attempt("import", torch_and_torchvision, INSTALL)
    if not any("import" in problem for problem in problems):
        check_cuda()
    attempt("flac through soundfile", read_flac, f"{sys.executable} -m pip install --force-reinstall soundfile")
    attempt("espeak-ng library", load_espeak, f"{sys.executable} -m pip install --force-reinstall espeakng-loader")
    if importlib.util.find_spec("s3prl") is not None:
        attempt("s3prl", import_s3prl, f'{INSTALL} --extras "s3prl"')
    check_files()
    print(f"{len(problems)} problems" if problems else "no problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

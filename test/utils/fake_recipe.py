"""A recipe whose stage scripts are stubs. The driver is real; the stages take no time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Appends its arguments to calls.log and writes the outputs of the real script. FAIL names the script that fails.
STUB = """
import os, sys, time
from pathlib import Path

def value(option):
    return sys.argv[sys.argv.index(option) + 1]

def make(path, text="x"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

name = Path(sys.argv[0]).stem
with open("calls.log", "a") as log:
    log.write(" ".join([name, *sys.argv[1:]]) + "\\n")
print("working on", name)
Path("recipe_command").write_text(os.environ["SPEECHCLIP_RECIPE_COMMAND"])
if os.environ.get("FAIL") == name:
    print("error: data/x: no good", file=sys.stderr)
    sys.exit(1)
if os.environ.get("SLEEP") == name:
    make("started")
    time.sleep(60)
content = " ".join(sys.argv[1:])
if name == "extract_clip_embeddings":
    for split in ("train", "dev", "test"):
        make(f"{value('--dump_root')}/{split}/image_embeddings.npz", content)
    if "--model.clip.path=" not in sys.argv:
        make(value("--vocabulary"))
elif name == "extract_features":
    if "--copy" in sys.argv:
        make(f"{value('--dump_root')}/train_augment1/feats.scp", content)
    elif value("--job") == "0" or value("--jobs") == "1":
        part = "convolutions/" if "conf/fast_vgs.yaml" in sys.argv else ""
        for split in ("train", "dev", "test"):
            make(f"{value('--dump_root')}/{split}/{part}feats.scp", content)
elif name == "extract_regions":
    for split in ("train", "dev", "test"):
        make(f"{value('--dump_root')}/{split}/regions/feats.scp", content)
elif name == "train":
    make(value("--out") + "/last/state")
    make(value("--out") + "/best/model.safetensors", os.environ.get("WEIGHTS", content))
    make(value("--out") + "/best/config.yaml")
elif name == "score_retrieval":
    make(value("--out") + "/retrieval.json", content)
elif name == "score_keywords" and not any(head in value("--out") for head in ("parallel", "fast_vgs")):
    make(value("--out") + "/keywords.json", content)
elif name == "train_recognizer":
    make(value("--out") + "/model.safetensors", content)
elif name == "transcribe":
    make(value("--out") + "/test.jsonl", content)
elif name == "score_asr":
    make(value("--out") + "/scores/retrieval.json", content)
    if "--text_head" in sys.argv:
        make(value("--text_head") + "/scores/retrieval.json", content)
elif name == "score_conditions":
    for at, word in enumerate(sys.argv):
        if word in ("--run", "--asr_run"):
            make(sys.argv[at + 2] + "/scores/conditions.json", content)
elif name == "convert_checkpoint":
    make(value("--out") + "/model.safetensors", content)
elif name == "pack":
    make(value("--out") + "/model.safetensors")
    make(value("--out") + "/README.md")
elif name == "results":
    make(value("--out"))
    if "--conditions_figure" in sys.argv:
        make(value("--conditions_figure") + ".svg")
    folders = sys.argv[sys.argv.index("--exp") + 1:]
    stop = [at for at, word in enumerate(folders) if word.startswith("--")]
    for folder in folders[:stop[0] if stop else None]:
        make(f"{folder}/figures/training.svg")
        make(f"{folder}/report/index.html")
"""
SUMMARY = "import sys; print('summary of', *sys.argv[1:])\n"
DOWNLOAD = """#!/usr/bin/env bash
set -euo pipefail
echo "download $*" >>calls.log
mkdir -p corpus && echo caption >corpus/captions.tsv
"""
PREPARE = """#!/usr/bin/env bash
set -euo pipefail
echo "prepare $*" >>calls.log
for split in train dev test; do
    mkdir -p data/$split
    for file in wav.scp text utt2spk spk2utt img.scp utt2img; do echo "a $split" >data/$split/$file; done
done
"""
SCRIPTS = (
    "extract_clip_embeddings", "extract_features", "train", "score_retrieval", "score_keywords", "results",
    "validate_data_dir", "convert_checkpoint", "pack", "train_recognizer", "transcribe", "score_asr",
    "score_conditions", "extract_regions",
)  # fmt: skip


class FakeRecipe:
    """A recipe folder below a temporary ``root``, with the run.sh of egs/mini."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "egs" / "mini"
        shutil.copytree(ROOT / "utils", root / "utils", ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "local").mkdir(parents=True)
        (self.folder / "conf").mkdir()
        (root / "egs" / "conf").mkdir()
        for name in ("run.sh", "path.sh", "cmd.sh"):
            shutil.copy(ROOT / "egs" / "mini" / name, self.folder / name)
        text = (self.folder / "run.sh").read_text()
        wanted = 'downloaded="corpus/captions.tsv"'
        lines = [wanted if line.startswith("downloaded=") else line for line in text.splitlines()]
        assert wanted in lines
        (self.folder / "run.sh").write_text("\n".join(lines) + "\n")
        (self.folder / "local" / "download.sh").write_text(DOWNLOAD)
        (self.folder / "local" / "prepare.sh").write_text(PREPARE)
        (self.folder / "conf" / "tiny.yaml").write_text("a: 1\n")
        (root / "egs" / "conf" / "cascaded.yaml").write_text("b: 1\n")
        package = root / "speechclip" / "bin"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text('__version__ = "1.0"\n')
        (package / "__init__.py").write_text("")
        for name in SCRIPTS:
            (package / f"{name}.py").write_text(STUB)
        (package / "summary.py").write_text(SUMMARY)
        (root / "utils" / "check_config.py").write_text(
            "import sys\nif '--bad.key' in sys.argv:\n    sys.exit('error: unknown configuration key bad.key')\n"
        )

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of run.sh: this Python, without settings of the caller's recipe."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return {**kept, "SPEECHCLIP_PYTHON": sys.executable, **more}

    def run(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ./run.sh with these options to its end."""
        return subprocess.run(
            ["./run.sh", *options],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        """Start ./run.sh with these options in a process group of its own."""
        return subprocess.Popen(
            ["./run.sh", *options],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a background job starts with SIGINT ignored, and a shell cannot undo that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def calls(self) -> list[str]:
        """Return the command lines of the stage scripts since the last call of this method."""
        log = self.folder / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def names(self) -> list[str]:
        """Return the first words of :meth:`calls`."""
        return [line.split()[0] for line in self.calls()]

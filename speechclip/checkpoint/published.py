"""The published models: their names, addresses, scores, and the cache that their files are downloaded to.

Fifteen checkpoints are public: six of SpeechCLIP (Shih et al. 2022) and nine of SpeechCLIP+ (Wang et al. 2024).
"""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.common.files import only_one
from speechclip.data.corpora.download import Progress, RemoteFile, download

CACHE_VARIABLE = "SPEECHCLIP_CACHE"
PREFIX = "speechclip_"  # of the names in s3prl's hub; accepted in the other names too

# The addresses are those of download_ckpts.sh in atosystem/SpeechCLIP and in ShampooWang/SpeechCLIP_plus (f0d9c9a).
_SPEECHCLIP = "https://huggingface.co/speechclip/models/resolve/main"
_SPEECHCLIP_PLUS = "https://huggingface.co/ShampooWang/speechclip_plus/resolve/main"
# (address above <model>/<corpus>/, head, folder of the head, {(model, corpus): file})
_FILES: tuple[tuple[str, str, str, dict[tuple[str, str], str]], ...] = (
    (_SPEECHCLIP, "parallel", "parallel", {
        ("base", "flickr"): "epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt",
        ("large", "flickr"): "epoch_56-step_6668-val_recall_mean_10_89.0000.ckpt",
        ("large", "coco"): "epoch_14-step_33224-val_recall_mean_10_84.0128.ckpt",
    }),
    (_SPEECHCLIP, "cascaded", "cascaded", {
        ("base", "flickr"): "epoch_58-step_6902-val_recall_mean_1_7.7700.ckpt",
        ("large", "flickr"): "epoch_187-step_21995-val_recall_mean_10_62.7700.ckpt",
        ("large", "coco"): "epoch_12-step_28794-val_recall_mean_10_36.1455.ckpt",
    }),
    (_SPEECHCLIP_PLUS, "hybrid", "hybrid", {
        ("base", "flickr"): "epoch%3D134-step%3D15794-val_recall_mean_10%3D80.0100.ckpt",
        ("large", "flickr"): "epoch%3D85-step%3D10061-val_recall_mean_10%3D90.1000.ckpt",
        ("large", "coco"): "epoch%3D12-step%3D28794-val_recall_mean_10%3D79.2988.ckpt",
    }),
    (_SPEECHCLIP_PLUS, "cascaded_plus", "cascaded%2B", {
        ("base", "flickr"): "epoch%3D326-step%3D38258-val_recall_mean_10%3D42.1100.ckpt",
        ("large", "flickr"): "epoch%3D112-step%3D26441-val_recall_mean_10%3D60.0500.ckpt",
        ("large", "coco"): "epoch%3D10-step%3D48740-val_recall_mean_10%3D31.2973.ckpt",
    }),
    (_SPEECHCLIP_PLUS, "hybrid_plus", "hybrid%2B", {
        ("base", "flickr"): "epoch%3D80-step%3D9476-val_recall_mean_10%3D81.0300.ckpt",
        ("large", "flickr"): "epoch%3D50-step%3D5966-val_recall_mean_10%3D89.3500.ckpt",
        ("large", "coco"): "epoch%3D21-step%3D48729-val_recall_mean_10%3D83.5408.ckpt",
    }),
)  # fmt: skip
_WIDTHS = {"base": 768, "large": 1024}
_CORPORA = {"flickr": "Flickr8k", "coco": "SpokenCOCO"}


@dataclass(frozen=True)
class PublishedModel:
    """A published checkpoint.

    Attributes:
        name: such as "parallel_large_coco".
        url: the address of the file.
        head: the name of the head.
        size: "base" or "large".
        corpus: the corpus that it was trained on.
        width: d, width of its speech encoder.
        bytes: the size of the file; 0 if it is not published.
    """

    name: str
    url: str
    head: str
    size: str
    corpus: str
    width: int
    bytes: int = 0

    @property
    def file_name(self) -> str:
        """The name of the file."""
        return urllib.parse.unquote(self.url.rsplit("/", 1)[-1])

    @property
    def score(self) -> str:
        """The validation score that the name of the file holds: mean recall over both directions, in percent."""
        found = re.search(r"val_recall_mean_(\d+)[_=](\d+\.\d+)\.ckpt$", self.file_name)
        return f"R@{found.group(1)} {float(found.group(2)):.2f}" if found else ""


PUBLISHED_MODELS = {
    model.name: model
    for at, head, folder, files in _FILES
    for (size, corpus), file in files.items()
    for model in [
        PublishedModel(
            f"{head}_{size}" + ("" if corpus == "flickr" else f"_{corpus}"), f"{at}/{size}/{corpus}/{folder}/{file}",
            head, size, _CORPORA[corpus], _WIDTHS[size],
        )
    ]
}  # fmt: skip


#: Models of FaST-VGS (Peng and Harwath 2022). Their host has no addresses of single files: put best_bundle.pth and
#: args.pkl into the cache.
MANUAL_MODELS = {"fast_vgs_coco": "FaST-VGS", "fast_vgs_plus_coco": "FaST-VGS+"}
BUNDLE = "best_bundle.pth"
MANUAL_FOLDER = "https://drive.google.com/drive/folders/1AOSXSaEgP8vnBR3cjLI7k_IYsFk_uZD3"


def manual_file(name: str) -> Path:
    """Return the bundle of a model of FaST-VGS in the cache.

    Raises:
        UserError: it is missing. The message names the folder of the authors and the place for the files.
    """
    name = name.removeprefix(PREFIX)
    file = manual_path(name)
    if not file.is_file():
        raise UserError(
            f"{file}: is missing. Download {BUNDLE} and args.pkl of {MANUAL_MODELS[name]} from {MANUAL_FOLDER} into "
            "its folder."
        )
    return file


def manual_path(name: str) -> Path:
    """Return the path of the bundle of a model of FaST-VGS. The file exists only if a user has put it there."""
    return cache_folder() / name / BUNDLE


def find_published(name: str) -> PublishedModel | None:
    """Return the published model of a name, with or without "speechclip_" in front; None for other names."""
    return PUBLISHED_MODELS.get(name.removeprefix(PREFIX))


def cache_folder() -> Path:
    """Return the folder of downloaded models: ``$SPEECHCLIP_CACHE``, else ``~/.cache/speechclip``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "speechclip")


def cached_file(model: PublishedModel) -> Path:
    """Return the path of a model's file in the cache. The file exists only if its download is complete."""
    return cache_folder() / model.name / model.file_name


def downloaded_bytes(model: PublishedModel) -> int:
    """Return the number of bytes of a model in the cache. A download that was cut counts too."""
    file = cached_file(model)
    present = [path for path in (file, file.with_name(f"{file.name}.part")) if path.is_file()]
    return present[0].stat().st_size if present else 0


def fetch_published(model: PublishedModel, progress: Progress | None = None, pause: float = 2.0) -> Path:
    """Return the file of a published model. The first call downloads it; a later call resumes a download that was cut.

    Args:
        model: the model.
        progress: receives the number of bytes so far and in total: see
            :func:`speechclip.data.corpora.download.download`.
        pause: seconds before the second attempt.

    Raises:
        UserError: the file cannot be downloaded, or it does not have the announced size.
        UserError: another process is downloading it.
    """
    file = cached_file(model)
    if file.is_file():
        _check_size(file, model)
        return file
    about = f"{CACHE_VARIABLE} names the cache"
    remote = RemoteFile(file.name, (model.url,), model.bytes, (file.name,), about=about)
    with only_one(file.parent):
        download([remote], file.parent, pause=pause, progress=progress)
    _check_size(file, model)
    return file


def _check_size(file: Path, model: PublishedModel) -> None:
    if model.bytes and file.stat().st_size != model.bytes:
        raise UserError(
            f"{file}: {file.stat().st_size} bytes, {model.bytes} are published. Delete the file and try again."
        )

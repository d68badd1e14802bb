"""The original files of the encoders: where they are published, and the names they have in a folder of models.

The checksums of CLIP's files are the publisher's. fairseq publishes none for its HuBERT files, and no second host has
them (s3prl's HuBERT files are converted).
"""

from __future__ import annotations

from pathlib import Path

from speechclip.data.corpora.download import RemoteFile

_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_FAIRSEQ = "https://dl.fbaipublicfiles.com/hubert"
_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"


def _hubert(name: str, size: int, about: str) -> RemoteFile:
    return RemoteFile(name, (f"{_FAIRSEQ}/{name}",), size, (name,), about=about)


def _clip(name: str, digest: str, size: int, hub: str) -> RemoteFile:
    about = f"OpenAI's CLIP; also as transformers' {hub}"
    return RemoteFile(name, (f"{_OPENAI}/{digest}/{name}",), size, (name,), checksum=f"sha256:{digest}", about=about)


#: The encoders of each model size: HuBERT and CLIP.
ENCODERS = {
    "base": (
        _hubert("hubert_base_ls960.pt", 1_140_000_000, "HuBERT Base; also facebook/hubert-base-ls960"),
        _clip("ViT-B-32.pt", _B32, 353_976_522, "openai/clip-vit-base-patch32"),
    ),
    "large": (
        _hubert("hubert_large_ll60k.pt", 3_800_000_000, "HuBERT Large; also facebook/hubert-large-ll60k"),
        _clip("ViT-L-14.pt", _L14, 932_768_134, "openai/clip-vit-large-patch14"),
    ),
}
#: The names of an encoder in a folder of models: the original file, the transformers folder, the open_clip folder.
FORMS = {
    "hubert_base_ls960.pt": ("hubert_base_ls960.pt", "hubert-base-ls960"),
    "hubert_large_ll60k.pt": ("hubert_large_ll60k.pt", "hubert-large-ll60k"),
    "ViT-B-32.pt": ("ViT-B-32.pt", "clip-vit-base-patch32", "ViT-B-32"),
    "ViT-L-14.pt": ("ViT-L-14.pt", "clip-vit-large-patch14", "ViT-L-14"),
}


def find_encoder(folder: Path, name: str) -> Path | None:
    """Return the first form of an encoder that a folder of models has, or None.

    Args:
        folder: the folder of models.
        name: the name of the encoder's original file.
    """
    paths = (folder / form for form in FORMS[name])
    return next((path for path in paths if path.exists()), None)

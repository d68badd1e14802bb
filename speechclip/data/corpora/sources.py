"""Where corpora and encoders are published: mirrors, sizes, checksums.

A checksum is the publisher's (Flickr8k, OpenAI), or one that unrelated public downloaders have alike (COCO's; LAVIS is
among them). None was to be found of SpokenCOCO's archive, of its Karpathy split and of fairseq's HuBERT files, nor a
second host of these or of flickr_audio.tar.gz (s3prl's HuBERT files are converted).
"""

from __future__ import annotations

from speechclip.data.corpora.download import RemoteFile

_FLICKR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
_ILLINOIS = "http://nlp.cs.illinois.edu/HockenmaierGroup/Framing_Image_Description"
_COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")  # one store, two names
_DARKNET = "https://pjreddie.com/media/files"  # as scripts/get_coco_dataset.sh of pjreddie/darknet has it
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_FAIRSEQ = "https://dl.fbaipublicfiles.com/hubert"
_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"

FLICKR8K = (
    RemoteFile(
        "Flickr8k_Dataset.zip", (f"{_FLICKR}/Flickr8k_Dataset.zip", f"{_ILLINOIS}/Flickr8k_Dataset.zip"),
        1_120_000_000, ("Flicker8k_Dataset",), unpacked=1_130_000_000, into="",
        checksum="md5:f18a1e2920de5bd84dae7cf08ec78978",
        about="the 8,091 photographs of Flickr8k, Hodosh et al. 2013, also on Kaggle as adityajn105/flickr8k",
    ),
    RemoteFile(
        "Flickr8k_text.zip", (f"{_FLICKR}/Flickr8k_text.zip", f"{_ILLINOIS}/Flickr8k_text.zip"),
        2_400_000, ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k_text/Flickr_8k.trainImages.txt"),
        unpacked=12_000_000, into="Flickr8k_text", checksum="md5:bf6c1abcb8e4a833b7f922104de18627",
        about="the captions and splits of Flickr8k, Hodosh et al. 2013",
    ),
    RemoteFile(
        "flickr_audio.tar.gz",
        ("https://groups.csail.mit.edu/sls/downloads/flickraudio/downloads/flickr_audio.tar.gz",),
        4_500_000_000, ("flickr_audio/wavs", "flickr_audio/wav2capt.txt", "flickr_audio/wav2spk.txt"),
        unpacked=5_500_000_000, into="", checksum="md5:9d078f1f150c26e864aa64d1d733779a",
        about="the Flickr 8k Audio Caption Corpus, Harwath and Glass 2015",
    ),
)  # fmt: skip
SPOKENCOCO = (
    RemoteFile(
        "train2014.zip", (*(f"{host}/zips/train2014.zip" for host in _COCO), f"{_DARKNET}/train2014.zip"),
        13_510_573_713, ("train2014",), unpacked=13_600_000_000, into="",
        checksum="md5:0da8c0bd3d6becc4dcb32757491aca88", about="COCO's training images of 2014, cocodataset.org",
    ),
    RemoteFile(
        "val2014.zip", (*(f"{host}/zips/val2014.zip" for host in _COCO), f"{_DARKNET}/val2014.zip"),
        6_645_013_297, ("val2014",), unpacked=6_700_000_000, into="",
        checksum="md5:a3d79f5ed8d289b7a7554ce06a5782b3", about="COCO's validation images of 2014, cocodataset.org",
    ),
    RemoteFile(
        "annotations_trainval2014.zip", tuple(f"{host}/annotations/annotations_trainval2014.zip" for host in _COCO),
        252_872_794, ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
        unpacked=830_000_000, into="", checksum="md5:0a379cfc70b0e71301e0f377548639bd",
        about="COCO's captions of 2014, cocodataset.org",
    ),
    RemoteFile(
        "SpokenCOCO.tar.gz", ("https://data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz",), 69_000_000_000,
        ("SpokenCOCO/wavs",), unpacked=75_000_000_000, into="", about="SpokenCOCO's recordings, Hsu et al. 2021",
    ),
    RemoteFile(
        "ksplit.tar.gz", ("https://huggingface.co/speechclip/models/resolve/main/ksplit.tar.gz",), 60_000_000,
        ("SpokenCOCO/ksplit",), unpacked=400_000_000, into="SpokenCOCO",
        about="SpokenCOCO's Karpathy split, SpokenCOCO_ksplit_{train,val,test}.json; the same split with word "
        "alignments, not tried here, is VG-HuBERT's karpathy_json.tar, "
        "https://www.cs.utexas.edu/~harwath/model_checkpoints/vg_hubert/karpathy_json.tar",
    ),
)  # fmt: skip


def _hubert(name: str, size: int, about: str) -> RemoteFile:
    return RemoteFile(name, (f"{_FAIRSEQ}/{name}",), size, (name,), about=about)


def _clip(name: str, digest: str, size: int, hub: str) -> RemoteFile:
    about = f"OpenAI's CLIP; also as transformers' {hub}"
    return RemoteFile(name, (f"{_OPENAI}/{digest}/{name}",), size, (name,), checksum=f"sha256:{digest}", about=about)


ENCODERS = {
    "base": (
        _hubert("hubert_base_ls960.pt", 1_140_000_000, "HuBERT Base; also facebook/hubert-base-ls960"),
        _clip("ViT-B-32.pt", _B32, 353_976_522, "openai/clip-vit-base-patch32"),
    ),
    "large": (
        _hubert("hubert_large_ll60k.pt", 3_800_000_000, "HuBERT Large; also facebook/hubert-large-ll60k"),
        _clip("ViT-L-14.pt", _L14, 932_768_134, "openai/clip-vit-large-patch14"),
    ),
}  # fmt: skip
#: Names an encoder goes by in a folder of models: the original file, transformers' folder, open_clip's folder.
FORMS = {
    "hubert_base_ls960.pt": ("hubert_base_ls960.pt", "hubert-base-ls960"),
    "hubert_large_ll60k.pt": ("hubert_large_ll60k.pt", "hubert-large-ll60k"),
    "ViT-B-32.pt": ("ViT-B-32.pt", "clip-vit-base-patch32", "ViT-B-32"),
    "ViT-L-14.pt": ("ViT-L-14.pt", "clip-vit-large-patch14", "ViT-L-14"),
}
SOURCES = {"flickr8k": FLICKR8K, "spokencoco": SPOKENCOCO, **ENCODERS}

"""The names that are added to s3prl's hub. As in s3prl, each takes ``ckpt``, ``model_config`` and ``refresh``.

``speechclip_<head>_<model>`` is the checkpoint that the authors published for Flickr8k (Shih et al. 2022; Wang et al.
2024); with ``_coco`` it is the one for SpokenCOCO. It is downloaded once into s3prl's cache. ``ckpt`` replaces it by a
local file or folder. ``speechclip_local`` loads any checkpoint of this project or a published file. ``speechclip_url``
loads a file from its address. ``speechclip_encoder_local`` omits the head's layer. It is the baseline of a comparison:
the same encoder on the same waveforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from speechclip.common.errors import UserError
from speechclip.upstream.expert import UpstreamExpert

Entry = Callable[..., UpstreamExpert]

# Addresses as in the download_ckpts.sh of atosystem/SpeechCLIP and of ShampooWang/SpeechCLIP_plus (commit f0d9c9a)
SPEECHCLIP = "https://huggingface.co/speechclip/models/resolve/main"
SPEECHCLIP_PLUS = "https://huggingface.co/ShampooWang/speechclip_plus/resolve/main"
# (address that <model>/<corpus>/ follows, head, folder of the head, {(model, corpus): file})
_FILES: tuple[tuple[str, str, str, dict[tuple[str, str], str]], ...] = (
    (SPEECHCLIP, "parallel", "parallel", {
        ("base", "flickr"): "epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt",
        ("large", "flickr"): "epoch_56-step_6668-val_recall_mean_10_89.0000.ckpt",
        ("large", "coco"): "epoch_14-step_33224-val_recall_mean_10_84.0128.ckpt",
    }),
    (SPEECHCLIP, "cascaded", "cascaded", {
        ("base", "flickr"): "epoch_58-step_6902-val_recall_mean_1_7.7700.ckpt",
        ("large", "flickr"): "epoch_187-step_21995-val_recall_mean_10_62.7700.ckpt",
        ("large", "coco"): "epoch_12-step_28794-val_recall_mean_10_36.1455.ckpt",
    }),
    (SPEECHCLIP_PLUS, "hybrid", "hybrid", {
        ("base", "flickr"): "epoch%3D134-step%3D15794-val_recall_mean_10%3D80.0100.ckpt",
        ("large", "flickr"): "epoch%3D85-step%3D10061-val_recall_mean_10%3D90.1000.ckpt",
        ("large", "coco"): "epoch%3D12-step%3D28794-val_recall_mean_10%3D79.2988.ckpt",
    }),
    (SPEECHCLIP_PLUS, "cascaded_plus", "cascaded%2B", {
        ("base", "flickr"): "epoch%3D326-step%3D38258-val_recall_mean_10%3D42.1100.ckpt",
        ("large", "flickr"): "epoch%3D112-step%3D26441-val_recall_mean_10%3D60.0500.ckpt",
        ("large", "coco"): "epoch%3D10-step%3D48740-val_recall_mean_10%3D31.2973.ckpt",
    }),
    (SPEECHCLIP_PLUS, "hybrid_plus", "hybrid%2B", {
        ("base", "flickr"): "epoch%3D80-step%3D9476-val_recall_mean_10%3D81.0300.ckpt",
        ("large", "flickr"): "epoch%3D50-step%3D5966-val_recall_mean_10%3D89.3500.ckpt",
        ("large", "coco"): "epoch%3D21-step%3D48729-val_recall_mean_10%3D83.5408.ckpt",
    }),
)  # fmt: skip
_WIDTHS = {"base": 768, "large": 1024}  # of the speech encoder


class Published(NamedTuple):
    """A published checkpoint: its address, its head, and the width of its speech encoder."""

    url: str
    head: str
    width: int


PUBLISHED = {
    f"speechclip_{head}_{model}" + ("" if corpus == "flickr" else f"_{corpus}"): Published(
        f"{at}/{model}/{corpus}/{folder}/{file}", head, _WIDTHS[model]
    )
    for at, head, folder, files in _FILES
    for (model, corpus), file in files.items()
}


def speechclip_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """Load a SpeechCLIP checkpoint from this machine.

    Args:
        ckpt: folder of this project (``exp/<run>/best``) or a published file.
        model_config: YAML layer over the folder's configuration, for example to name an encoder that was moved.
        refresh: has no effect, because nothing is downloaded.
        options: see :class:`UpstreamExpert`.

    Raises:
        UserError: no checkpoint is given, or it cannot be loaded.
    """
    if ckpt is None:
        raise UserError(
            "speechclip_local: no checkpoint given. Use -k of run_downstream, or path_or_url of S3PRLUpstream."
        )
    return UpstreamExpert(ckpt, model_config, **options)


def speechclip_url(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """Load the checkpoint file at the address ``ckpt``; ``refresh`` downloads it again."""
    if ckpt is None or "://" not in ckpt:
        raise UserError(f"speechclip_url: {ckpt!r} is not an address. Give the URL of a checkpoint file.")
    return UpstreamExpert(_fetch(ckpt, refresh), model_config, **options)


def speechclip_encoder_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """Load only the speech encoder of :func:`speechclip_local`: the same states without the head's."""
    return speechclip_local(ckpt, model_config, refresh, head_layer=False, **options)


def _published(name: str) -> Entry:
    published = PUBLISHED[name]

    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
    ) -> UpstreamExpert:
        expert = UpstreamExpert(ckpt or _fetch(published.url, refresh), model_config, **options)
        found = expert.model.config.head.name, expert.model.dimensions.speech
        if found != (published.head, published.width):
            raise UserError(
                f"{ckpt or published.url}: has a {found[0]} head on {found[1]} dimensions, but {name} has a "
                f"{published.head} head on {published.width}. Use speechclip_local for any checkpoint."
            )
        return expert

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Load the checkpoint of {published.url}; ``refresh`` downloads it again."
    return entry


def _fetch(url: str, refresh: bool) -> str:
    """Return the path of a file in s3prl's cache. It is downloaded if it is missing."""
    import requests
    from s3prl.util.download import urls_to_filepaths

    try:
        return str(urls_to_filepaths(url, refresh=refresh))
    except (OSError, KeyError, requests.RequestException) as error:
        raise UserError(f"{url}: cannot be downloaded ({type(error).__name__}). Give a local file as ckpt.") from error


ENTRIES: dict[str, Entry] = {
    "speechclip_local": speechclip_local,
    "speechclip_url": speechclip_url,
    "speechclip_encoder_local": speechclip_encoder_local,
    **{name: _published(name) for name in PUBLISHED},
}
globals().update(ENTRIES)  # for `from speechclip.upstream.hubconf import *`; register() takes ENTRIES
__all__ = sorted(ENTRIES)  # noqa: PLE0605

"""The names that s3prl's hub gets, each a function of ``ckpt``, ``model_config`` and ``refresh`` as there is usual.

``speechclip_<head>_<model>`` stands for a checkpoint published by the authors (Shih et al. 2022), Flickr8k's, and with
``_coco`` SpokenCOCO's. It is downloaded once into s3prl's own cache; ``ckpt`` names a file or folder to take instead.
``speechclip_local`` takes any checkpoint of this project or a published one, ``speechclip_url`` an address of one.
``speechclip_encoder_local`` leaves the head's layer out: the same encoder on the same waveforms, the baseline of a
comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from speechclip.errors import UserError
from speechclip.upstream.expert import UpstreamExpert

Entry = Callable[..., UpstreamExpert]

PUBLISHED_AT = "https://huggingface.co/speechclip/models/resolve/main"
# name: (file below PUBLISHED_AT, head, width of the speech encoder)
PUBLISHED: dict[str, tuple[str, str, int]] = {
    "speechclip_parallel_base": (
        "base/flickr/parallel/epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt", "parallel", 768),
    "speechclip_cascaded_base": (
        "base/flickr/cascaded/epoch_58-step_6902-val_recall_mean_1_7.7700.ckpt", "cascaded", 768),
    "speechclip_parallel_large": (
        "large/flickr/parallel/epoch_56-step_6668-val_recall_mean_10_89.0000.ckpt", "parallel", 1024),
    "speechclip_cascaded_large": (
        "large/flickr/cascaded/epoch_187-step_21995-val_recall_mean_10_62.7700.ckpt", "cascaded", 1024),
    "speechclip_parallel_large_coco": (
        "large/coco/parallel/epoch_14-step_33224-val_recall_mean_10_84.0128.ckpt", "parallel", 1024),
    "speechclip_cascaded_large_coco": (
        "large/coco/cascaded/epoch_12-step_28794-val_recall_mean_10_36.1455.ckpt", "cascaded", 1024),
}  # fmt: skip


def speechclip_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """SpeechCLIP of a checkpoint on this machine.

    Args:
        ckpt: folder of this project (``exp/<run>/best``) or a published file.
        model_config: YAML layer over the configuration in the folder, for instance to name an encoder that has moved.
        refresh: nothing is downloaded here, so it changes nothing.
        options: see :class:`UpstreamExpert`.
    """
    if ckpt is None:
        raise UserError("speechclip_local: no checkpoint given (-k of run_downstream, path_or_url of S3PRLUpstream)")
    return UpstreamExpert(ckpt, model_config, **options)


def speechclip_url(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """SpeechCLIP of a checkpoint file at the address ``ckpt``; ``refresh`` downloads it again."""
    if ckpt is None or "://" not in ckpt:
        raise UserError(f"speechclip_url: {ckpt!r} is no address of a checkpoint")
    return UpstreamExpert(_fetch(ckpt, refresh), model_config, **options)


def speechclip_encoder_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
) -> UpstreamExpert:
    """The speech encoder of :func:`speechclip_local` alone, the same hidden states but for the head's."""
    return speechclip_local(ckpt, model_config, refresh, head_layer=False, **options)


def _published(name: str) -> Entry:
    file, head, width = PUBLISHED[name]

    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
    ) -> UpstreamExpert:
        expert = UpstreamExpert(ckpt or _fetch(f"{PUBLISHED_AT}/{file}", refresh), model_config, **options)
        found = expert.model.config.head.name, expert.model.dimensions.speech
        if found != (head, width):
            raise UserError(
                f"{ckpt}: a {found[0]} head on {found[1]} dimensions, {name} is a {head} one on {width}; "
                "speechclip_local takes any"
            )
        return expert

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"The published {head} SpeechCLIP of ``{file}``; ``refresh`` downloads it again."
    return entry


def _fetch(url: str, refresh: bool) -> str:
    """Path of a file in s3prl's cache, downloaded where it is not there yet."""
    import requests
    from s3prl.util.download import urls_to_filepaths

    try:
        return str(urls_to_filepaths(url, refresh=refresh))
    except (OSError, KeyError, requests.RequestException) as error:
        raise UserError(f"{url}: cannot be downloaded ({type(error).__name__}); give a local file as ckpt") from error


ENTRIES: dict[str, Entry] = {
    "speechclip_local": speechclip_local,
    "speechclip_url": speechclip_url,
    "speechclip_encoder_local": speechclip_encoder_local,
    **{name: _published(name) for name in PUBLISHED},
}
globals().update(ENTRIES)  # where torch.hub and `from speechclip.upstream.hubconf import *` look
__all__ = sorted(ENTRIES)  # noqa: PLE0605

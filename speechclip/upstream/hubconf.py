"""The names that are added to s3prl's hub. As in s3prl, each takes ``ckpt``, ``model_config`` and ``refresh``.

``speechclip_<head>_<model>`` is the checkpoint that the authors published for Flickr8k (Shih et al. 2022; Wang et al.
2024); with ``_coco`` it is the one for SpokenCOCO. It is downloaded once into the cache of
:mod:`speechclip.checkpoint.published`. ``ckpt`` replaces it by a local file or folder. ``speechclip_local`` loads any
checkpoint of this project or a published file. ``speechclip_url`` loads a file from its address.
``speechclip_encoder_local`` omits the head's layer. It is the baseline of a comparison: the same encoder on the same
waveforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from speechclip.checkpoint.pretrained import download_published
from speechclip.checkpoint.published import MANUAL_MODELS, PREFIX, PUBLISHED_MODELS, cached_file, manual_file
from speechclip.common.errors import UserError
from speechclip.upstream.expert import UpstreamExpert

Entry = Callable[..., UpstreamExpert]


class Published(NamedTuple):
    """A published checkpoint: its address, its head, and the width of its speech encoder."""

    url: str
    head: str
    width: int


PUBLISHED = {PREFIX + name: Published(item.url, item.head, item.width) for name, item in PUBLISHED_MODELS.items()}


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


def _manual(name: str) -> Entry:
    def entry(
        ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **options: Any
    ) -> UpstreamExpert:
        expert = UpstreamExpert(ckpt or manual_file(name), model_config, **options)
        found = expert.model.config.head.name
        if found != "fast_vgs":
            raise UserError(f"{ckpt}: has a {found} head, but {name} is a FaST-VGS. Use speechclip_local.")
        return expert

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Load {MANUAL_MODELS[name]} from the cache, or ``ckpt``: its best_bundle.pth or a folder."
    return entry


def _fetch(url: str, refresh: bool) -> str:
    """Return the local path of a file: of a published model in this project's cache, of others in s3prl's."""
    published = next((model for model in PUBLISHED_MODELS.values() if model.url == url), None)
    if published is not None:
        if refresh:
            cached_file(published).unlink(missing_ok=True)
        return str(download_published(published))
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
    **{name: _manual(name) for name in MANUAL_MODELS},
}
globals().update(ENTRIES)  # for `from speechclip.upstream.hubconf import *`; register() takes ENTRIES
__all__ = sorted(ENTRIES)  # noqa: PLE0605

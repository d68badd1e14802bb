"""Imports for multiprocessing's fork server: they load and register everything that an s3prl command needs.

Processes that are forked from the server start at once. Otherwise each of them would import for seconds. No other
module imports this one.
"""

from __future__ import annotations

from speechclip.upstream import quietly, register
from speechclip.upstream.provide import provide

register()
provide()

with quietly():
    import s3prl.problem  # noqa: F401 # after provide(), which completes torchaudio
    import transformers.models.hubert.modeling_hubert  # noqa: F401
    from librosa import load  # noqa: F401 # it is lazy: each loader process would import it

"""For multiprocessing's fork server, which can only import: everything an s3prl command needs, loaded and registered.

Processes forked from it start at once, where each would else import for seconds. Nothing else imports this module.
"""

from __future__ import annotations

from speechclip.upstream import quietly, register
from speechclip.upstream.provide import provide

register()
provide()

with quietly():
    import s3prl.problem  # noqa: F401 # only now that torchaudio can be imported
    import transformers.models.hubert.modeling_hubert  # noqa: F401
    from librosa import load  # noqa: F401 # else only when it is called, for seconds in every new worker of a loader

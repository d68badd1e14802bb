"""Readers of other projects' checkpoints. No code of a file is executed.

:mod:`unpickle` interprets a pickle and :mod:`torchfile` the containers around it. :mod:`hubert` and :mod:`clip`
translate the encoders. :mod:`layout`, :mod:`plus_layout` and :mod:`reader` translate SpeechCLIP and SpeechCLIP+.
:mod:`rows` finds the subword ids.
"""

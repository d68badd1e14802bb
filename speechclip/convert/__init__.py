"""Checkpoints as their authors published them, read without running anything in them.

:mod:`unpickle` interprets the pickle, :mod:`torchfile` the containers around it, :mod:`hubert` and :mod:`clip`
translate the encoders' tensors, :mod:`layout`, :mod:`plus_layout` and :mod:`reader` those of SpeechCLIP and
SpeechCLIP+, :mod:`rows` finds the subword ids.
"""

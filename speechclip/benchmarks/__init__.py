"""Adapters for the interfaces of other projects: mteb, MSEB and sentence-transformers.

Import this package before sentence-transformers or mteb. Then both can be imported if torchvision is a CUDA build next
to a CPU build of torch.
"""

from speechclip.common.compat import prepare

prepare()

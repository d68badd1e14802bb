"""Parametrised weights (HuBERT's weight norm) as plain weights."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.nn.utils import parametrize


def merge_parametrizations(model: nn.Module) -> None:
    """Replace each parametrised module inside a model by a plain one with the same values, without gradients.

    torch cannot pickle parametrised modules. ``remove_parametrizations`` also breaks every copy of the module, because
    copies share a class; here, modules outside of the model stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if parametrize.is_parametrized(child):
                setattr(parent, name, _plain(child))


def _plain(module: nn.Module) -> nn.Module:
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    plain = object.__new__(kind)
    plain.__dict__.update({k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()})
    plain._load_state_dict_pre_hooks = OrderedDict()  # weight_norm's hook is a local function
    del plain._modules["parametrizations"]
    assert isinstance(module.parametrizations, nn.ModuleDict)
    for name in module.parametrizations:
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach(), requires_grad=False))
    return plain

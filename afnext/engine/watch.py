"""Whether a network is still what it was."""

from __future__ import annotations

from operator import is_

from afnext.model import AudioLanguageModel

from .packed import can_pack


class Watch:
    """Looks at a network again and again: at 7B in under a millisecond, where walking over it takes five.

    Args:
        net: the network.

    Attributes:
        packs: see ``can_pack``.
    """

    def __init__(self, net: AudioLanguageModel) -> None:
        self._net = net
        self._walk()

    def version(self) -> object:
        """Is another one whenever a parameter was written to or replaced (inference tensors: replaced)."""
        if not self._whole():
            self._walk()
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters]

    def _walk(self) -> None:
        self.packs = can_pack(self._net)
        self._parameters = list(self._net.parameters())
        self._modules = [
            (m, type(m), list(m._modules.values()), list(m._parameters.values()))
            for m in self._net.modules()
        ]

    def _whole(self) -> bool:
        """Whether every module has its class, and the modules and parameters that it had."""
        return all(
            type(module) is own
            and len(module._modules) == len(modules)
            and len(module._parameters) == len(parameters)
            and all(map(is_, module._modules.values(), modules))
            and all(map(is_, module._parameters.values(), parameters))
            for module, own, modules, parameters in self._modules
        )

"""Devices by their names."""

from __future__ import annotations

import torch

from afnext.errors import AfnextError


def usable_device(device: str | torch.device) -> torch.device:
    """A device, tried out.

    Raises:
        AfnextError: there is none of this name here.
    """
    try:
        found = torch.device(device)
    except RuntimeError:  # it lists every kind that was ever planned
        raise AfnextError(f"device: must be cpu, cuda, cuda:1, ..., got {device!r}") from None
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        if "aten::" in reason:  # torch lists every kind of device that it was built for
            reason = "torch is built without it"
        raise AfnextError(f"device: '{device}' cannot be used ({reason})") from None
    return found

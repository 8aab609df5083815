"""The device to compute on, by name."""

from __future__ import annotations

from grounding.errors import BadInput


def choose_device(name: str) -> str:
    """``auto`` becomes cuda where there is one. Raises BadInput for a device that is not there."""
    import torch  # not for every start of the command

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise BadInput(f"device {name!r} is unknown; accepted: auto, cpu, cuda, cuda:N") from None
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise BadInput(f"device {name!r} is not available here; accepted: auto, cpu")
    return name

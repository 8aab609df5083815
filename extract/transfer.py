"""From the device to the host: copies on a stream of their own, so that the model's next pass need not wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """Brings tensors to the host. On a GPU they go to page-locked memory beside the computing stream."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def to_host(self, tensors: Mapping[Any, Tensor]) -> Arriving:
        """Start copying; the tensors may be freed at once by whoever holds them."""
        if self._stream is None:
            return Arriving({name: tensor.cpu() for name, tensor in tensors.items()})
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        host = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory is not given away before the copy is done
            done = torch.cuda.Event()
            done.record(self._stream)
        return Arriving(host, done)


class Arriving:
    """Tensors on their way to the host."""

    def __init__(self, tensors: dict[Any, Tensor], done: torch.cuda.Event | None = None):
        self._tensors, self._done = tensors, done

    def wait(self) -> dict[Any, Tensor]:
        """The tensors, when they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors

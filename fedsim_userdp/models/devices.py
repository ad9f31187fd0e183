"""Bringing small arrays to the device."""

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """Returns the array as a tensor on the device; the copy to a GPU does not wait for what the GPU is doing."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

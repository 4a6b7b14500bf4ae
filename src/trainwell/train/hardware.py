"""What a run computes on: device, precision, memory format, threads; chosen, applied, and recorded."""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainwell.errors import InputError
from trainwell.train.recipe import Recipe


@dataclass(frozen=True)
class Hardware:
    """Device, precision ("bf16" or "fp32") and memory format ("channels_last" or "contiguous") of a run."""

    device: torch.device
    precision: Literal["bf16", "fp32"]
    memory_format: Literal["channels_last", "contiguous"]

    def autocast(self) -> "torch.autocast":
        """Returns the context in which the model is called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def channels_last(self) -> bool:
        """Whether images and weights of convolutions lie in memory channels last."""
        return self.memory_format == "channels_last"


def choose(recipe: Recipe, images: bool) -> Hardware:
    """Makes the choices that a recipe leaves to "auto".

    bf16 pays in convolutions and large matrix products, so it is for images only, where the device has instructions
    for it; channels_last likewise.

    Raises:
        InputError: the device is unknown or not there.
    """
    device = _device(recipe.device)
    precision, memory_format = recipe.precision, recipe.memory_format
    if precision == "auto":
        precision = "bf16" if images and _has_bf16(device) else "fp32"
    if memory_format == "auto":
        memory_format = "channels_last" if images and device.type != "mps" else "contiguous"
    return Hardware(device, precision, memory_format)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the device {name!r} cannot be used ({reason}); try cpu, or auto") from None
    return device


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return any(check() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
               if (check := getattr(torch.cpu, name, None)))  # fmt: skip


@contextlib.contextmanager
def applied(threads: int | None) -> Iterator[None]:
    """Sets what a run needs of the process, and puts it back: threads, and algorithms that repeat to the bit."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]


def threads() -> str:
    """Returns how many threads torch uses, in words."""
    count = torch.get_num_threads()
    return "1 thread" if count == 1 else f"{count} threads"


def keep_freed_memory() -> bool:
    """Tells glibc to keep large freed buffers for the next step instead of handing them back to the kernel.

    By default each large tensor is fresh memory whose every page faults when first touched. Returns whether the
    process runs on glibc, where alone this does something. It holds for the rest of the process.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    trim_threshold, mmap_threshold = -1, -3
    largest = 1 << 30
    return bool(mallopt(mmap_threshold, largest)) and bool(mallopt(trim_threshold, largest))


def environment(hardware: Hardware) -> dict[str, Any]:
    """Returns what two runs must share to agree to the bit, and a little more for the reader."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(hardware.device),
        "device_name": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else "",
        "precision": hardware.precision,
        "memory_format": hardware.memory_format,
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns, in words, where two environments differ in a way that can change bits."""
    decisive = ("torch", "cpu", "threads", "device", "device_name", "precision", "memory_format")
    return [f"{name} was {then.get(name)}, is {now[name]}" for name in decisive if then.get(name) != now[name]]


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or os.uname().machine if hasattr(os, "uname") else platform.processor()

"""The device and its numbers: looked up once, then frozen with the run."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from pipeline.config import ComputeSettings
from pipeline.networks.depthwise import train_depthwise_in_float32
from pipeline.torchrun import processes

MAPPED = 8 << 20
"""Bytes of an array from which on glibc is told to map it, see give_freed_memory_back."""
_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD."""
FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def freeze(compute: ComputeSettings) -> ComputeSettings:
    """Replace every automatic choice by what this machine has.

    bf16 only where the hardware gains by it, else fp16 with loss scaling on CUDA, else fp32. Raises ValueError where
    the wanted device or precision is not here.
    """
    device = compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "compute.device: expected a CUDA device, found none that PyTorch can use; "
            "take compute.device=cpu, or install the PyTorch wheel that fits the driver (README, 'GPUs')"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("compute.device: expected Apple's mps, found none; take compute.device=cpu")
    started = processes()
    if started and compute.devices != started.count:
        raise ValueError(
            f"compute.devices: expected {started.count}, the processes that torchrun started, found {compute.devices}"
        )
    available = torch.cuda.device_count() if device == "cuda" else compute.devices
    if (started.here if started else compute.devices) > available:
        raise ValueError(f"compute.devices: expected at most {available} here, found {compute.devices}")
    precision = compute.precision
    if precision == "auto":
        precision = "bf16" if gains_by_bf16(device) else "fp16" if device == "cuda" else "fp32"
    if precision == "fp16" and device != "cuda":
        raise ValueError(f"compute.precision: fp16 needs CUDA, found device {device}; take bf16 or fp32")
    return compute.model_copy(
        update={
            "device": device,
            "precision": precision,
            "channels_last": device != "mps" if compute.channels_last is None else compute.channels_last,
            "threads": compute.threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else compute.threads or os.cpu_count() or 1,
            "workers": compute.workers if compute.workers >= 0 else 0 if device == "cpu" else 4,
        }
    )  # fmt: skip


def gains_by_bf16(device: str) -> bool:
    """Whether bf16 is computed by the hardware, and faster than float32: tensor cores, AMX, AVX-512 but Intel's, ARM.

    Intel's cores without AMX, or in machines that are not given it, take two cycles for the one instruction of AVX-512
    that multiplies bf16, and half a cycle for one of float32: half the products in the end (uops.info, VDPBF16PS).
    """
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        of_intel = str(features.get("cpu_name", "")).startswith("Intel")
        by_vectors = features.get("avx512_bf16") and not of_intel
        return bool(by_vectors or features.get("amx_bf16") or features.get("bf16"))
    return False


def lay_out(network: nn.Module, compute: ComputeSettings) -> None:
    """Bring a network's weights into the memory format that the settings name; compute: as frozen."""
    if compute.channels_last:
        of_volumes = getattr(network, "dimensions", 2) == 3
        network.to(memory_format=torch.channels_last_3d if of_volumes else torch.channels_last)


def suit(network: nn.Module, compute: ComputeSettings) -> None:
    """Bring a network that is to be trained into the form in which its steps are fastest; compute: as frozen."""
    lay_out(network, compute)
    if compute.device == "cpu" and compute.precision == "bf16":
        train_depthwise_in_float32(network)


def repeat_bytes(compute: ComputeSettings) -> None:
    """Have CUDA give the same bytes again in this process, where it can; PyTorch warns of what it cannot.

    Before anything runs on the device. Processors do so without.
    """
    if compute.device != "cuda":
        return
    # cuBLAS reads it when it is first used (NVIDIA's manual, 'Results reproducibility').
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Finds reads of what was never written, which costs time and changes nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(compute: ComputeSettings) -> str:
    """One line for people: where it runs and in which numbers."""
    name = torch.cuda.get_device_name() if compute.device == "cuda" else compute.device
    layout = "channels last" if compute.channels_last else "channels first"
    count = f"{compute.devices} x " if compute.devices > 1 else ""
    return f"{count}{name}, {compute.precision}, {layout}, {compute.threads} threads"


def give_freed_memory_back() -> None:
    """Have arrays of MAPPED bytes and more leave the process when they are freed; only where glibc allocates.

    It would raise that bound to 32 MB of its own accord and keep smaller ones, scattered, for want of a use: 0.12 to
    0.16 GB of a slide's prediction, which is no slower without.
    """
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, MAPPED)

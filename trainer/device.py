"""The device of a run: which one, in which precision, in full float32, and what to do when its memory runs out."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from shards.errors import UsageError, UsrganError
from trainer.config.schema import Config
from trainer.distributed.process_group import SINGLE_PROCESS, ProcessGroup

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Parts of torch's messages, for GPU and CPU."""


def choose_device(name: str, group: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """Return the device of this process; each rank of a machine gets its own GPU.

    Args:
        name: `cpu`, `cuda` or `auto`, which takes a GPU where torch sees one.
        group: the processes of the job.

    Raises:
        UsageError: torch sees no GPU, or fewer than this machine has ranks.
    """
    if group.world_size > 1 and name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < group.local_world_size:
            raise UsageError(
                f"--gpus: {group.local_world_size} processes need a GPU each, torch sees {count};"
                " ask for as many as there are, or for CPU processes with --device cpu"
            )
        return torch.device("cuda", group.local_rank)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda:0")  # decoding threads need the number
    return device


def use_bf16(config: Config, device: torch.device) -> bool:
    """Return whether steps run under bf16 autocast; "auto" says yes where the hardware computes in bf16.

    Raises:
        UsageError: the configuration asks for fp16 without a GPU.
    """
    if config.precision == "fp16" and device.type != "cuda":
        raise UsageError("precision = fp16: needs a GPU; use bf16, fp32 or auto")
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def describe_precision(config: Config, device: torch.device) -> str:
    """Return the precision of the steps for the run header."""
    if config.precision == "fp16":
        return "fp16 with a GradScaler"
    return "bf16 (float32's range: no GradScaler)" if use_bf16(config, device) else "fp32"


def describe_device(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    threads = torch.get_num_threads()
    return f"CPU ({name}, {threads} thread{'s' * (threads != 1)})"


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolve in full float32 inside: cuDNN's TF32 rounds factors to ten bits and changes the fourth digit."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def explain_out_of_memory(subject: str, *, fix: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one line.

    Args:
        subject: the work or the file, at the start of the message.
        fix: advice, at its end.

    Raises:
        UsrganError: the memory of the device does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(
            part in str(error) for part in _OUT_OF_MEMORY
        ):
            raise
        raise UsrganError(f"{subject}: needs more memory than the device has; {fix}") from error

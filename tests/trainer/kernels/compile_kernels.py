"""Compile every kernel that a step of the paper's network launches, without the GPU.

Usage: compile_kernels.py CAPABILITY. Prints the bytes that each spills: {"name and constants": bytes}.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.kernels import bias_leaky_relu, dense_block, dense_block_launches
from trainer.kernels.triton import bias_leaky_relu as activations
from trainer.kernels.triton import convolve, norms, weights
from trainer.networks.rrdb import RRDB, DenseBlock
from trainer.training.acceleration import block_params

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Recorded:
    """Stands in for a kernel and records the arguments of its launches."""

    def __init__(self, kernel, launches: dict) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, num_warps=4, **compiled):
        signature = tuple(map(kind, args))
        key = (self.kernel, signature, tuple(sorted(compiled.items())), num_warps)
        self.launches[key] = None


def kind(argument) -> str:
    if isinstance(argument, torch.Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def launches() -> dict:
    noted: dict = {}
    for module in (convolve, norms, weights, activations):
        for name in (
            "forward",
            "backward",
            "input_gradient",
            "seed_gradient",
            "normalise",
            "normalise_back",
            "pack",
            "accumulate_grads",
        ):
            if hasattr(module, name):
                setattr(module, name, Recorded(getattr(module, name), noted))
    x = torch.zeros(2, 64, 32, 32, dtype=torch.bfloat16).requires_grad_()
    for norm in ("none", "batch"):
        body = nn.Sequential(*(RRDB(features=64, growth=32, norm=norm) for _ in range(2)))
        body.to(memory_format=torch.channels_last)
        blocks = [block_params(each) for each in body.modules() if isinstance(each, DenseBlock)]
        made = dense_block.run_blocks_accumulating_grads(x, blocks)
        made.backward(torch.zeros_like(made))
    for channels, factor in ((64, 1), (512, 1), (256, 2)):
        maps = torch.zeros(2, channels, 32, 32, dtype=torch.bfloat16).requires_grad_()
        bias = torch.zeros(channels, requires_grad=True)
        made = bias_leaky_relu.add_bias_leaky_relu_shuffle(maps * 1, bias, 0.2, factor)
        made.backward(torch.zeros_like(made))
    return noted


def spilled(kernel, signature, compiled, warps: int, target: GPUTarget) -> int:
    names, constants = kernel.arg_names, dict(compiled)
    given = iter(signature)
    kinds = {name: "constexpr" if name in constants else next(given) for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, each in enumerate(kinds.values())
        if each.startswith("*")
    }
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=target, options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return int(re.search(r"STACK:(\d+)", told)[1])


def main() -> None:
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    dense_block_launches.reads_shared_operands = lambda _: target.arch >= 90
    found = {}
    for kernel, signature, compiled, warps in launches():
        module, settings = (
            kernel.__module__.rpartition(".")[2],
            map("{0[0]}={0[1]}".format, compiled),
        )
        name = " ".join((module, kernel.__name__, *settings))
        found[name] = spilled(kernel, signature, compiled, warps, target)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

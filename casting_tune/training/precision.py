"""The precision of `auto` for a network on a device, and notes about bf16 on a CPU without it.

Input: configurations and a device. Output: fp32 or bf16, from measurements; nothing is probed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from casting_tune import machine
from casting_tune.config import TrialConfig
from casting_tune.models import registry

Precision = Literal["fp32", "bf16"]
TIMM_CPU_BF16 = frozenset({"timm:resnet10t"})
"""Other networks that are assumed to gain from bf16 on a CPU with bf16 instructions.

resnet10t is similar to resnet18, which reached 143 images/s instead of 70 (128 px, batch size 32).
It was measured only on a CPU without them: 0.10 (0.09 to 0.11) times fp32 (96 px, batch size 8).
"""


def resolve(config: TrialConfig, device: Literal["cpu", "cuda"]) -> Precision:
    """Return the precision of a configuration on a device.

    `auto` is bf16 on a GPU. On a CPU it is bf16 if the CPU has bf16 instructions and the backbone
    gains (`Backbone.cpu_bf16`, `TIMM_CPU_BF16`), else fp32.
    """
    if config.precision != "auto":
        return config.precision
    return (
        "bf16"
        if device == "cuda" or (gains(config.backbone) and machine.cpu_has_bf16())
        else "fp32"
    )


def gains(backbone: str) -> bool:
    """Return whether a backbone gains from bf16 on a CPU with bf16 instructions."""
    known = registry.BACKBONES.get(backbone)
    return backbone in TIMM_CPU_BF16 if known is None else known.cpu_bf16


def notes(configs: Iterable[TrialConfig], device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Return a note if bf16 is requested on a CPU without it; steps take much longer.

    Measured: resnet10t, 96 px, batch size 64, one thread, AVX2 only, torch 2.14:
    18.9 to 22.5 s against 1.5 to 2.0 s, n = 6.
    """
    if (
        device == "cpu"
        and any(config.precision == "bf16" for config in configs)
        and machine.cpu_has_bf16() is False
    ):
        return (
            'precision = "bf16" on a CPU without bf16 instructions: a step takes many times '
            'as long as in fp32 (resnet10t: 12 times). Use "auto": it selects the faster one.',
        )
    return ()

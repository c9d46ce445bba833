"""What precision `auto` means for a network on a device, and what must be said of bf16 on a CPU that cannot do it.

Comes in: configurations and a device. Goes out: fp32 or bf16, from what was measured; nothing is
ever probed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from casting_tune.config import TrialConfig
from casting_tune.models import registry

Precision = Literal["fp32", "bf16"]
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
TIMM_CPU_BF16 = frozenset({"timm:resnet10t"})
"""Networks beyond the study's that are taken to gain from bf16 on a CPU with bf16 instructions.

Of resnet10t that is by likeness: resnet18 took 143 images/s in place of 70 (128 px, batch size 32).
It was not compared itself.
"""


def resolve(config: TrialConfig, device: Literal["cpu", "cuda"]) -> Precision:
    """Return what precision `auto` means for a backbone on a device.

    A GPU computes in bf16. A CPU does where it has bf16 instructions and the backbone is known to
    gain (`Backbone.cpu_bf16`, `TIMM_CPU_BF16`), else in fp32.
    """
    if config.precision != "auto":
        return config.precision
    return "bf16" if device == "cuda" or (gains(config.backbone) and cpu_has_bf16()) else "fp32"


def gains(backbone: str) -> bool:
    """Say whether a backbone is known or taken to gain from bf16 on a CPU that has bf16 instructions."""
    known = registry.BACKBONES.get(backbone)
    return backbone in TIMM_CPU_BF16 if known is None else known.cpu_bf16


def cpu_has_bf16() -> bool | None:
    """Say whether this CPU has bf16 instructions, by what Linux lists for an x86; None where it lists nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return not BF16_FLAGS.isdisjoint(line.split())
    return None


def notes(configs: Iterable[TrialConfig], device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Say up front that bf16 was asked of a CPU without it, where steps then take many times as long.

    Source: resnet10t, 96 px, batch size 64, one thread, AVX2 alone, torch 2.14:
    18.9 to 22.5 s against 1.5 to 2.0 s, n = 6.
    """
    if (
        device == "cpu"
        and any(config.precision == "bf16" for config in configs)
        and cpu_has_bf16() is False
    ):
        return (
            'precision = "bf16" on a CPU without bf16 instructions: a step takes many times as long as one in fp32 '
            '(resnet10t: 12 times); "auto" takes bf16 where it is faster.',
        )
    return ()

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import sys
from casting_tune.models import build; from casting_tune.models import light_import
network = build.model("timm:resnet10t", weights="none", dense=0, dropout=0, in_channels=1, seed=0)
import torch
optimiser = torch.optim.AdamW(network.parameters(), fused=True)
network(torch.zeros(2, 1, 32, 32)).sum().backward()
optimiser.step()
optimiser.zero_grad()
stands = isinstance(sys.modules["torch._dynamo"], light_import._Placeholder)
assert stands and "torch._dynamo.config" not in sys.modules and "wandb" not in sys.modules
"""
WANTED = {
    "compile": "assert torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(1)).item() == 2",
    "a module of it": "import torch._dynamo.config as c; assert c is torch._dynamo.config",
    "module that is imported on request": (
        "import torch._dynamo.backends.onnxrt as m; assert m.__spec__.loader"
    ),
    "a name": "from torch._dynamo import reset; reset()",
    "its utils": (
        "from torch._dynamo.utils import counters; assert counters is torch._dynamo.utils.counters"
    ),
    "torchvision's question": (
        "sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')"
    ),
}


def run(code: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr


def test_a_training_step_loads_neither_torchs_compiler_nor_wandb() -> None:
    run(STEP)


@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_whoever_wants_the_compiler_gets_the_whole_of_it(name: str) -> None:
    last = "assert not stands_for(torch._dynamo) and sys.modules['torch._dynamo'] is torch._dynamo"
    asks = "stands_for = lambda module: isinstance(module, light_import._Placeholder)"
    whole = (
        "assert all(one.__name__ == name for name, one in sys.modules.items() "
        "if name.startswith('torch._dynamo'))"
    )
    run("\n".join((STEP, asks, WANTED[name], last, whole)))


@pytest.mark.slow
def test_a_compiler_that_is_loaded_already_stays() -> None:
    training = STEP.partition("stands =")[0]
    run(
        f"import torch._dynamo as before\n{training}\nassert sys.modules['torch._dynamo'] is before"
    )


@pytest.mark.slow
def test_a_compiler_that_cannot_be_loaded_leaves_a_step_as_it_was() -> None:
    fails = (
        "sys.modules['sympy'] = None\n"
        "try:\n    torch._dynamo.reset\n    sys.exit('it loaded')\nexcept ImportError:\n    pass\n"
        "assert torch._dynamo is sys.modules['torch._dynamo'] "
        "and isinstance(torch._dynamo, light_import._Placeholder)\n"
        "optimiser.step()\n"
    )
    run(STEP + fails)

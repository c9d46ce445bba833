"""timm and torch without what no trial uses: torch's compiler and wandb, 3 of 10 seconds of a worker's imports.

torchvision, which timm imports, and each step of a torch optimiser import `torch._dynamo`, and that
half of torch and sympy; outside torch.compile nothing they do with it has an effect. Something
small stands for it until it is wanted. What was kept from compilation meanwhile (an optimiser's
bookkeeping, torchvision's wrapping) may be compiled then.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
_LOADING = threading.RLock()


@contextmanager
def imports() -> Iterator[None]:
    """Import timm within this.

    What is loaded already stays, and whoever asks more of it later gets the real one.

    Source: torch 2.14, timm 1.0.31, torchvision 0.29, two cores: `import timm` after torch 3.6 and
    4.2 s of CPU, within this 0.9 and 1.1 s, and 157 MiB less (n = 2 in turn).
    """
    if COMPILER not in sys.modules:
        import torch

        standing, utils = _Standing(COMPILER), ModuleType(UTILS)
        standing.utils, standing.__spec__ = utils, ModuleSpec(COMPILER, None, is_package=True)
        utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        utils.__getattr__ = lambda name: _real(UTILS, name)  # type: ignore[method-assign]
        sys.modules[COMPILER], sys.modules[UTILS] = standing, utils
        torch._dynamo = standing
        sys.meta_path.insert(0, _Finder())
    hidden = not {"timm", "wandb"} & set(sys.modules)
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # ends an import as one that is not installed
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]


class _Standing(ModuleType):
    """Stands for `torch._dynamo`, with what eager code asks of it."""

    __path__: MutableSequence[str] = []  # noqa: RUF012
    utils: ModuleType

    @staticmethod
    def disable(
        fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
    ) -> Callable[..., Any]:
        """Return the function itself: nothing compiles it."""
        del recursive, options
        return fn if fn is not None else lambda function: function

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing, as outside a compiled function."""

    def __getattr__(self, name: str) -> Any:
        return _real(COMPILER, name)


class _Finder(MetaPathFinder, Loader):
    """Loads the compiler when one of its modules is imported, and leaves."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        """Return None, or what gives the module that loading the compiler has loaded."""
        del path, target
        if not fullname.startswith(f"{COMPILER}."):
            return None
        _load()
        if fullname not in sys.modules:
            return importlib.util.find_spec(fullname)
        self.loaded = sys.modules[fullname], sys.modules[fullname].__spec__
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that is loaded."""
        del spec
        return self.loaded[0]

    def exec_module(self, module: ModuleType) -> None:
        """Give it back the specification of its own."""
        module.__spec__ = self.loaded[1]


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = _real(UTILS, "is_compile_supported")(device_type)
    return supported


def _real(module: str, name: str) -> Any:
    if name.startswith(
        "__"
    ):  # whoever looks through all modules asks for these, and wants no compiler
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    _load()
    return getattr(sys.modules[module], name)


def _load() -> None:
    """Put the real compiler in its place; where its import fails, what stood for it stands again."""
    with _LOADING:
        if not isinstance(sys.modules.get(COMPILER), _Standing):
            return
        import torch

        standing = {name: sys.modules.pop(name) for name in (COMPILER, UTILS)}
        finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]
        try:
            torch._dynamo = importlib.import_module(COMPILER)
        except BaseException:
            sys.modules.update(standing)
            sys.meta_path[:0] = finders
            raise

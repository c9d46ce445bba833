"""Imports timm without torch's compiler and wandb, which no trial uses: 3 of 10 seconds of imports.

torchvision, which timm imports, and each step of a torch optimiser import `torch._dynamo`, which
imports half of torch and sympy. Outside torch.compile this has no effect. A small placeholder
module replaces it until the compiler is used. Functions that were excluded from compilation before
(in optimisers and torchvision) may then be compiled.
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
    """Replace torch's compiler and wandb by placeholders while timm is imported.

    Modules that are already loaded stay. The real compiler is loaded when it is first used.

    Source: torch 2.14, timm 1.0.31, torchvision 0.29, two cores: `import timm` after torch took 3.6
    and 4.2 s of CPU, with placeholders 0.9 and 1.1 s, and 157 MiB less (n = 2, alternating).
    """
    if COMPILER not in sys.modules:
        import torch

        placeholder, utils = _Placeholder(COMPILER), ModuleType(UTILS)
        placeholder.utils, placeholder.__spec__ = utils, ModuleSpec(COMPILER, None, is_package=True)
        utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        utils.__getattr__ = lambda name: _real(UTILS, name)  # type: ignore[method-assign]
        sys.modules[COMPILER], sys.modules[UTILS] = placeholder, utils
        torch._dynamo = placeholder
        sys.meta_path.insert(0, _Finder())
    hidden = not {"timm", "wandb"} & set(sys.modules)
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # an import then fails as if it were not installed
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]


class _Placeholder(ModuleType):
    """Placeholder for `torch._dynamo` with the functions that eager code uses."""

    __path__: MutableSequence[str] = []  # noqa: RUF012
    utils: ModuleType

    @staticmethod
    def disable(
        fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
    ) -> Callable[..., Any]:
        """Return the function unchanged: nothing compiles it."""
        del recursive, options
        return fn if fn is not None else lambda function: function

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing, as outside a compiled function."""

    def __getattr__(self, name: str) -> Any:
        return _real(COMPILER, name)


class _Finder(MetaPathFinder, Loader):
    """Loads the compiler when one of its modules is imported."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        """Return None, or the specification of a module that the compiler has loaded."""
        del path, target
        if not fullname.startswith(f"{COMPILER}."):
            return None
        _load()
        if fullname not in sys.modules:
            return importlib.util.find_spec(fullname)
        self.loaded = sys.modules[fullname], sys.modules[fullname].__spec__
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the loaded module."""
        del spec
        return self.loaded[0]

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification."""
        module.__spec__ = self.loaded[1]


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = _real(UTILS, "is_compile_supported")(device_type)
    return supported


def _real(module: str, name: str) -> Any:
    if name.startswith("__"):  # code that inspects all modules must not load the compiler
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    _load()
    return getattr(sys.modules[module], name)


def _load() -> None:
    """Replace the placeholder by the real compiler; restore it if the import fails."""
    with _LOADING:
        if not isinstance(sys.modules.get(COMPILER), _Placeholder):
            return
        import torch

        placeholders = {name: sys.modules.pop(name) for name in (COMPILER, UTILS)}
        finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]
        try:
            torch._dynamo = importlib.import_module(COMPILER)
        except BaseException:
            sys.modules.update(placeholders)
            sys.meta_path[:0] = finders
            raise

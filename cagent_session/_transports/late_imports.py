"""Call a function with a library once that is imported, so that nobody has to import it for us."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

OnImport: TypeAlias = Callable[[ModuleType], None]

_log = logging.getLogger("cagent_session")
_waiting: dict[str, OnImport] = {}


def when_imported(name: str, on_import: OnImport) -> None:
    """Call ``on_import`` with the module ``name``: now, if it is loaded, else when it will be."""
    if name in sys.modules:
        # Another thread may be importing it just now; this waits for it.
        _call(name, on_import, importlib.import_module(name))
        return
    _waiting[name] = on_import
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _call(name: str, on_import: OnImport, module: ModuleType) -> None:
    try:
        on_import(module)
    except Exception:
        # The program imports it for a purpose of its own, which is not to fail because of us.
        _log.warning("instrument() could not reach %s", name, exc_info=True)


class _Finder(MetaPathFinder):
    """Finds what the other finders find, with a loader that tells us when the module is loaded.

    It is in ``sys.meta_path`` as long as a library is waited for.
    """

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in _waiting or getattr(self._searching, "name", None) == fullname:
            return None
        self._searching.name = fullname
        try:
            spec = importlib.util.find_spec(fullname)
        except (ImportError, ValueError):
            return None  # the import that goes on says why
        finally:
            self._searching.name = None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module, and code that reads its resources, is to see the loader that it has anyway.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        on_import = _waiting.pop(module.__name__, None)
        if not _waiting and _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        if on_import is not None:
            _call(module.__name__, on_import, module)


_finder = _Finder()

"""Call a function with a library when the program imports that, without importing it ourselves."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

OnImport: TypeAlias = Callable[[ModuleType], None]

_log = logging.getLogger("cagent_session")
_waiting: dict[str, OnImport] = {}
_executing: set[str] = set()  # names of modules that our loader is executing


def when_imported(name: str, on_import: OnImport) -> None:
    """Call ``on_import`` with the module ``name``: now if it is loaded, and whenever it is loaded.

    It may be loaded again: ``mock.patch.dict(sys.modules)`` forgets what is imported inside. What a
    test has put in the module's place, such as a ``MagicMock``, does not count as loaded.
    """
    # Registered first, so that an import in another thread is not missed in between.
    _waiting[name] = on_import
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    importer = _importing_thread(name)
    if importer is not None and importer not in sys._current_frames():
        return  # that thread is in the process that forked this one: its import never ends here
    # Another thread may be importing it now, and have passed the finders before ours was there.
    with _import_lock(name):
        module = sys.modules.get(name)
    # By type(), because isinstance() believes a mock that pretends to be a module.
    if not issubclass(type(module), ModuleType) or name in _executing:
        return
    if importer == threading.get_ident():
        _log.warning(
            "instrument() does not reach %s, as it was called in the middle of its import: call it "
            "again afterwards",
            name,
        )
        return
    _call(name, importlib.import_module(name))


def _importing_thread(name: str) -> int | None:
    """Return the thread that is importing the module ``name``, if there is one."""
    reference = getattr(importlib._bootstrap, "_module_locks", {}).get(name)
    lock = None if reference is None else reference()
    owner: int | None = getattr(lock, "owner", None)
    return owner


def _import_lock(name: str) -> AbstractContextManager[object]:
    """Return the lock that a thread holds while it imports the module ``name``, if there is one.

    The plain code would lock in any case. A process that is forked meanwhile would then have a lock
    that nobody releases.
    """
    manager = getattr(importlib._bootstrap, "_ModuleLockManager", None)
    is_being_imported = name in getattr(importlib._bootstrap, "_module_locks", ())
    return manager(name) if manager and is_being_imported else contextlib.nullcontext()


def _call(name: str, module: ModuleType) -> None:
    """Call the function that waits for ``name``, under which another module may be loaded."""
    try:
        _waiting[name](module)
    except Exception:
        # The program imports it for a purpose of its own, which is not to fail because of us.
        _log.warning("instrument() could not reach %s", name, exc_info=True)


class _Finder(MetaPathFinder):
    """A finder that asks the other finders, and wraps the loader to learn when it is done."""

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in _waiting or getattr(self._searching, "name", None) == fullname:
            return None
        self._searching.name = fullname  # find_spec() asks all finders, and this one stays out
        try:
            spec = importlib.util.find_spec(fullname)
        except (ImportError, ValueError):
            return None  # the import goes on with the next finder, which raises the error
        finally:
            self._searching.name = None
        # A loader of the old kind has only load_module().
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """A loader that calls the waiting function after the module has been executed."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        # Python calls this for missing attributes. pkgutil.get_data() and others ask the loader of
        # a module that is not loaded for get_data(), is_package() and so on. Not for names such as
        # __deepcopy__: the original's would copy the original alone. And a copy is asked for
        # __setstate__ before it has a _loader.
        if name == "_loader" or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Resources of the package are read through its loader, which must be the original one.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _executing.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            _executing.discard(module.__name__)
        _call(module.__name__, module)


_finder = _Finder()

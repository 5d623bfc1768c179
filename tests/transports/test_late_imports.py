"""instrument() patches libraries that the program imports later, and imports none itself."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from cagent_session._transports.late_imports import _waiting, when_imported


def run(code: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PREPARE = """
    import sys
    from cagent_session import Gateway, instrument, session_scope
    from cagent_session.testing import RecordingGateway
"""
LOGGED = """
    import logging
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
"""
GET = {
    "httpx": "httpx.get(url)",
    "httpx2": "httpx2.get(url)",
    "aiohttp": """
            async def main():
                async with aiohttp.ClientSession() as http:
                    (await http.get(url)).close()
            import asyncio
            asyncio.run(main())
    """,
}


@pytest.mark.parametrize("library", GET)
def test_a_library_that_is_imported_later_is_covered(library: str):
    code = f"""{PREPARE}
    with RecordingGateway() as recording:
        url = recording.url
        instrument(Gateway(url, forward="https://api.openai.com/v1"))
        assert {library!r} not in sys.modules
        import {library}
        with session_scope("s1"):
            {GET[library].strip()}
        print(recording.requests[0].session_id)
    """
    assert run(code) == "s1"


@pytest.mark.parametrize("library", GET)
def test_a_library_that_is_imported_before_is_covered(library: str):
    code = f"""{PREPARE}
    import {library}
    with RecordingGateway() as recording:
        url = recording.url
        instrument(Gateway(url, forward="https://api.openai.com/v1"))
        with session_scope("s1"):
            {GET[library].strip()}
        print(recording.requests[0].session_id)
    """
    assert run(code) == "s1"


def test_there_is_one_finder():
    code = f"""{PREPARE}
    before = list(sys.meta_path)
    for _ in range(2):
        instrument()
        assert len(sys.meta_path) == len(before) + 1
        import httpx, httpx2, aiohttp
    """
    run(code)


@pytest.mark.parametrize("library", GET)
def test_a_library_that_is_imported_once_more_is_covered(library: str):
    """As after ``mock.patch.dict(sys.modules)``, which forgets what was imported inside."""
    code = f"""{PREPARE}
    with RecordingGateway() as recording:
        url = recording.url
        instrument(Gateway(url, forward="https://api.openai.com/v1"))
        before = set(sys.modules)
        for _ in range(2):
            import {library}
            with session_scope("s1"):
                {textwrap.indent(GET[library].strip(), " " * 4).strip()}
            for name in set(sys.modules) - before:
                if name.partition(".")[0] == "{library}":
                    del sys.modules[name]
        print(*[each.session_id for each in recording.requests])
    """
    assert run(code) == "s1 s1"


def test_a_library_that_stands_in_for_another_is_covered():
    code = f"""{PREPARE}{LOGGED}
    import httpx2
    httpx2.alias_httpx()
    with RecordingGateway() as recording:
        instrument(Gateway(recording.url, forward="https://api.openai.com/v1"))
        import httpx
        with session_scope("s1"):
            httpx.get(recording.url)
        print(*[each.session_id for each in recording.requests])
    """
    assert run(code) == "s1"


def test_a_second_copy_of_this_package_warns_that_it_does_not_reach_the_libraries():
    code = f"""{PREPARE}{LOGGED}
    instrument()
    for name in [name for name in sys.modules if name.startswith("cagent_session")]:
        del sys.modules[name]
    import cagent_session
    cagent_session.instrument()
    cagent_session.instrument()
    """
    told = " was patched by a copy of this package that was imported before, and"
    lines = [line.partition(told) for line in run(code).splitlines()]
    patched = [
        *["Thread.start"][: getattr(sys.flags, "thread_inherit_context", False)],
        "HTTPAdapter.send",
        "HTTPConnectionPool.urlopen",
        "PoolManager.urlopen",
        "ProxyManager.urlopen",
    ]
    assert [line[:2] for line in lines] == [(f"WARNING {path}", told) for path in patched]


IN_THE_MIDDLE = """
    class Hook:
        def find_spec(self, name, path=None, target=None):
            if name == "httpx._client":
                sys.meta_path.remove(self)
                instrument(gateway)
    sys.meta_path.insert(0, Hook())
"""


@pytest.mark.parametrize("is_first", [True, False])
def test_a_call_in_the_middle_of_an_import(is_first: bool):
    """An earlier call still reaches it; where there is none, a warning says what to do."""
    code = f"""{PREPARE}{LOGGED}{IN_THE_MIDDLE}
    with RecordingGateway() as recording:
        gateway = Gateway(recording.url, forward="https://api.openai.com/v1")
        {"" if is_first else "instrument(gateway)"}
        import httpx
        {"instrument(gateway)" if is_first else ""}
        with session_scope("s1"):
            httpx.get(recording.url)
        print(recording.requests[0].session_id)
    """
    *warnings, last = run(code).splitlines()
    assert last == "s1"
    assert [each.partition(", ")[0] for each in warnings] == [
        "WARNING instrument() does not reach httpx"
    ] * is_first


def test_modules_have_the_loader_that_they_have_without_us():
    code = f"""{PREPARE}
    import importlib.util
    loader = type(importlib.util.find_spec("httpx").loader)
    instrument()
    import httpx
    assert type(httpx.__loader__) is type(httpx.__spec__.loader) is loader
    import inspect
    assert "def get(" in inspect.getsource(httpx.get)
    """
    run(code)


LOADER = """
    import copy, importlib.util, pickle, pkgutil
    def shown(loader):
        names = ("get_data", "get_source", "get_filename", "is_package", "get_resource_reader",
                 "create_module", "exec_module", "__deepcopy__", "no_such_method")
        return [hasattr(loader, name) for name in names]
"""


@pytest.mark.parametrize("duplicate", ["", "copy.copy", "copy.deepcopy", "pickled"])
def test_what_is_not_loaded_yet_has_the_methods_of_its_loader(duplicate: str):
    code = f"""{PREPARE}{LOADER}
    pickled = lambda spec: pickle.loads(pickle.dumps(spec))
    plain = importlib.util.find_spec("aiohttp").loader
    instrument()
    spec = {duplicate}(importlib.util.find_spec("aiohttp"))
    assert shown(spec.loader) == shown(plain) == [True] * 7 + [False] * 2
    assert spec.loader.get_source("aiohttp") == plain.get_source("aiohttp")
    assert spec.loader.get_filename() == spec.origin
    assert pkgutil.get_data("aiohttp", "py.typed")
    assert type(sys.modules["aiohttp"].__loader__) is type(plain)
    from aiohttp import ClientSession
    print(hasattr(ClientSession._request, "__wrapped__"))
    """
    assert run(code) == "True"


def test_a_library_that_is_missing_is_missing_as_ever():
    code = f"""{PREPARE}
    instrument()
    sys.modules["httpx2"] = None
    for name in ("httpx2", "httpx.no_such_module"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            print(error.name)
    """
    assert run(code) == "httpx2\nhttpx.no_such_module"


def test_a_library_that_must_not_be_imported_is_passed_over():
    code = f"""{PREPARE}
    sys.modules["httpx"] = None  # what Python takes for a module that is missing
    instrument()
    try:
        import httpx
    except ModuleNotFoundError:
        print("missing")
    """
    assert run(code) == "missing"


@pytest.mark.parametrize("stand_in", ["MagicMock()", "MagicMock(spec=httpx)", "object()"])
def test_what_stands_in_for_a_library_is_passed_over(stand_in: str):
    code = f"""{PREPARE}
    import httpx
    from unittest.mock import MagicMock, patch
    with RecordingGateway() as recording:
        with patch.dict(sys.modules, httpx2={stand_in}):
            instrument(Gateway(recording.url, forward="https://api.openai.com/v1"))
        assert "httpx2" not in sys.modules
        import httpx2
        with session_scope("s1"):
            httpx.get(recording.url)
            httpx2.get(recording.url)
        print(*[each.session_id for each in recording.requests])
    """
    assert run(code) == "s1 s1"


def test_an_error_while_patching_costs_a_warning_and_not_the_import():
    code = f"""{PREPARE}{LOGGED}
    instrument()
    from cagent_session._transports import late_imports
    def fail(module):
        raise LookupError("a class has moved")
    late_imports._waiting["httpx"] = fail
    import httpx
    print(httpx.__name__)
    """
    lines = run(code).splitlines()
    assert lines[0] == "WARNING instrument() could not reach httpx"
    assert lines[-1] == "httpx"


def test_an_aiohttp_without_middlewares_costs_a_warning():
    code = f"""{PREPARE}{LOGGED}
    import aiohttp
    del aiohttp.ClientMiddlewareType
    instrument()
    instrument()
    """
    assert run(code).startswith("WARNING instrument() cannot reach aiohttp")
    assert len(run(code).splitlines()) == 1


@pytest.fixture
def slow_import(tmp_path, monkeypatch) -> Iterator[Callable[[], None]]:
    """A thread that is importing ``slow_library``, and a function that lets it come to its end."""
    (tmp_path / "slow_library.py").write_text(
        "import sys; sys.has_begun.set(); sys.may_end.wait(10)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    has_begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "has_begun", has_begun, raising=False)
    monkeypatch.setattr(sys, "may_end", may_end, raising=False)
    importing = threading.Thread(target=importlib.import_module, args=["slow_library"])
    importing.start()
    assert has_begun.wait(10)

    def end() -> None:
        may_end.set()
        importing.join(10)

    yield end
    end()
    sys.modules.pop("slow_library")
    _waiting.pop("slow_library", None)


def test_an_import_that_has_begun_in_another_thread_is_covered(slow_import):
    # Its path search has passed the finders, and the module is not there yet: the moment is too
    # short to hit, so take the module away.
    module = sys.modules.pop("slow_library")
    found: list[object] = []
    waiting = threading.Thread(target=when_imported, args=["slow_library", found.append])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    sys.modules["slow_library"] = module
    slow_import()
    waiting.join(10)
    assert found == [module]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "library",
    [
        pytest.param(
            "requests",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="import_module() locks there itself"
            ),
        ),
        "no_such_library",
    ],
)
def test_a_fork_while_another_thread_asks_for_a_library(library, monkeypatch):
    is_locked, may_go_on = threading.Event(), threading.Event()

    class Slow(importlib._bootstrap._ModuleLockManager):  # type: ignore[name-defined]
        def __enter__(self):
            super().__enter__()
            is_locked.set()
            may_go_on.wait(10)

    with monkeypatch.context() as patched:
        patched.setattr(importlib._bootstrap, "_ModuleLockManager", Slow)
        thread = threading.Thread(target=when_imported, args=[library, lambda module: None])
        thread.start()
        is_locked.wait(0.5)  # in vain, if it takes no lock
    child = os.fork()
    if not child:
        signal.alarm(5)  # ends it if it hangs
        when_imported(library, lambda module: None)
        os._exit(0)
    may_go_on.set()
    thread.join()
    _waiting.pop(library, None)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("slow_import")
def test_a_fork_while_another_thread_imports_a_library():
    child = os.fork()
    if not child:
        signal.alarm(5)  # ends it if it hangs
        when_imported("slow_library", lambda module: None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_loader_of_the_old_kind_loads_as_it_does_without(monkeypatch):
    class Loader:
        def load_module(self, name: str) -> ModuleType:
            sys.modules[name] = ModuleType(name)
            return sys.modules[name]

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            return ModuleSpec(name, Loader()) if name == "old_library" else None

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    when_imported("old_library", lambda module: None)
    spec = importlib.util.find_spec("old_library")
    assert spec is not None
    assert isinstance(spec.loader, Loader)
    del _waiting["old_library"]


def test_the_middleware_may_be_the_first_to_import_aiohttp():
    code = f"""{PREPARE}
    with RecordingGateway() as recording:
        url = recording.url
        instrument(Gateway(url, forward="https://api.openai.com/v1"))
        from cagent_session.integrations.aiohttp import GatewayMiddleware
        import aiohttp
        with session_scope("s1"):
            {GET["aiohttp"].strip()}
        print(recording.requests[0].session_id)
    """
    assert run(code) == "s1"

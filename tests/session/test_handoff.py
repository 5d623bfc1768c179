"""bind_session, received_session and the executors: threads, processes, interpreters."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from cagent_session import (
    SessionProcessPoolExecutor,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    no_session,
    parent_session_id,
    received_session,
    session_scope,
)
from cagent_session._session import interpreters
from cagent_session.integrations.threads import carry_session

other = contextvars.ContextVar("other", default="unset")


def see(*arguments):
    return (current_session_id(), *arguments)


def see_all(*arguments):
    yield current_session_id()
    yield from arguments


def family():
    return current_session_id(), parent_session_id()


def work_then_see(number):
    with session_scope(f"inner-{number}"):
        pass
    return current_session_id()


def fail():
    raise KeyError(current_session_id())


with_buffersize = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="Executor.map() has no buffersize"
)


class TestBindSession:
    def test_bound_function_runs_in_the_session_of_the_binding(self):
        with session_scope("a"):
            bound = bind_session(see)
        assert bound(1) == ("a", 1)
        with session_scope("b"):
            assert bound() == ("a",)
            assert current_session_id() == "b"
        assert current_session_id() is None

    @pytest.mark.parametrize("wrap", [bind_session, session_scope("a"), no_session()])
    def test_method_of_a_remote_proxy_is_called(self, wrap):
        asked = []

        class RemoteMethod:
            """Doc."""

            def __init__(self, name):
                self._name = name

            def __getattr__(self, name):  # as in xmlrpc.client
                asked.append(name)
                return RemoteMethod(f"{self._name}.{name}")

            def __call__(self, number):
                return self._name, number

        wrapped = wrap(RemoteMethod("add"))
        assert wrapped(1) == ("add", 1)
        assert (wrapped.__doc__, wrapped.__module__) == ("Doc.", __name__)
        assert len(asked) < 50  # its __wrapped__ has a __wrapped__, and so on

    def test_function_bound_outside_every_session_runs_in_none(self):
        bound = bind_session(see)
        with session_scope("b"):
            assert bound() == (None,)

    def test_function_bound_twice_keeps_the_first_session(self):
        with session_scope("a"):
            bound = bind_session(see)
        with session_scope("b"):
            again = bind_session(bound)
        assert again() == ("a",)

    def test_bodies_of_bound_generator_and_coroutine_functions_are_covered(self):
        async def call():
            await asyncio.sleep(0)
            return current_session_id()

        async def stream():
            yield current_session_id()

        async def main():
            with session_scope("caller"):
                async for session_id in bound_stream():
                    assert session_id == "a"
                    assert current_session_id() == "caller"
            return await bound_call()

        with session_scope("a"):
            bound, bound_call, bound_stream = map(bind_session, (see_all, call, stream))
        for session_id in bound("a", "a"):
            assert session_id == "a"
            assert current_session_id() is None
        assert asyncio.run(main()) == "a"

    def test_a_bound_coroutine_function_is_seen_to_be_one(self):
        async def call(): ...

        assert inspect.iscoroutinefunction(bind_session(call))
        assert not inspect.iscoroutinefunction(bind_session(see))

    def test_bound_function_can_be_pickled_if_the_function_can(self):
        for fn, result in (
            (see, ("a",)),
            (functools.partial(see, 1), ("a", 1)),
            ("x".upper, "X"),
            (dict, {}),
        ):
            with session_scope("a"):
                bound = bind_session(fn)
            assert pickle.loads(pickle.dumps(bound))() == bound() == result
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(bind_session(lambda: None))

    def test_every_name_of_an_argument_goes_through(self):
        def take(self, fn, args, kwargs, cls, scopes_for):
            return self, fn, args, kwargs, cls, scopes_for

        names = dict.fromkeys(inspect.signature(take).parameters, 1)
        assert bind_session(take)(**names) == (1,) * 6
        with SessionThreadPoolExecutor(1) as pool:
            assert pool.submit(take, **names).result() == (1,) * 6

    def test_classes_can_be_bound(self):
        class Seen:
            _fn = "not ours"

            def __init__(self):
                self.session_id = current_session_id()

        with session_scope("a"):
            assert bind_session(Seen)().session_id == "a"

    def test_bound_function_has_the_name_of_the_function(self):
        with session_scope("a"):
            bound = bind_session(see)
        assert bound.__name__ == "see"
        assert repr(bound).endswith("bound to session 'a'>")

    def test_binding_what_is_not_callable_is_a_type_error(self):
        with pytest.raises(TypeError, match="bind_session takes a function, not int"):
            bind_session(5)


class TestReceivedSession:
    """What a worker goes through; the rules of one entry are tested with the family."""

    @pytest.fixture
    def warnings(self, caplog):
        """The messages of the log since they were last asked for."""
        caplog.set_level(logging.DEBUG)

        def taken():
            messages = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return messages

        return taken

    def test_received_sessions_leave_the_worker_as_it_was(self, warnings):
        seen = []
        messages = [
            ("s1", None),
            ("s2", "main"),
            (None, None),
            (None, "not valid"),
            ("a b", "main"),
            ("a\r\nX: y", "not valid"),
            ("s1", "a b"),
            (["s1"], {}),
            ("s2", 7),
        ]
        with session_scope("main"), session_scope("of-the-worker"):
            for session_id, parent in messages:
                with received_session(session_id, parent=parent) as entered:
                    seen.append((*family(), len(warnings())))
                    assert entered == current_session_id()
                    session_scope("left-open").__enter__()
                assert family() == ("of-the-worker", "main")
        assert seen == [
            ("s1", None, 0),
            ("s2", "main", 0),
            (None, None, 0),
            (None, None, 0),
            (None, None, 1),
            (None, None, 1),
            ("s1", None, 1),
            (None, None, 1),
            ("s2", None, 1),
        ]
        assert warnings() == []

    @pytest.mark.parametrize(
        "value", ["x" * 10_000, "a\r\n\x1b[31mX: y", "\ud800", b"s1", object()]
    )
    def test_warning_about_a_received_session_is_printable(self, warnings, value):
        received_session(value)
        (message,) = warnings()
        assert message.isprintable()
        assert message.isascii()
        assert len(message) < 250

    def test_received_session_closes_scopes_after_an_error(self):
        def work():
            session_scope("left-open").__enter__()
            no_session().__enter__()
            raise KeyError

        with session_scope("of-the-worker"):
            with pytest.raises(KeyError), received_session("s1"):
                work()
            assert current_session_id() == "of-the-worker"

    def test_received_sessions_nest(self):
        with received_session("s1", parent="main"), session_scope("inner"):
            with received_session("s2"):
                assert family() == ("s2", None)
                session_scope("left-open").__enter__()
            assert family() == ("inner", "s1")
        assert current_session_id() is None

    def test_received_session_may_end_twice_or_out_of_order(self):
        """The hooks of a queue do not always come in pairs."""
        first, second = received_session("s1"), received_session("s2")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert current_session_id() is None
        second.__exit__(None, None, None)
        first.__exit__(None, None, None)
        with session_scope("next"):
            first.__exit__(None, None, None)
            assert current_session_id() == "next"

    def test_one_received_session_in_many_threads_at_once(self):
        received = received_session("s1", parent="main")
        together = threading.Barrier(8, timeout=20)

        def work(number):
            for _ in range(20):
                with received, session_scope(f"inner-{number}"):
                    together.wait()
                    assert family() == (f"inner-{number}", "s1")
                assert current_session_id() is None

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    def test_bound_function_has_the_parent_of_a_received_session(self):
        with received_session("s1", parent="main"):
            bound = bind_session(family)
        assert bound() == ("s1", "main")


class TestThreads:
    def test_new_thread_has_a_session_only_if_its_target_is_bound(self):
        seen = []
        with session_scope("a"):
            for target in (see, bind_session(see)):
                thread = threading.Thread(target=lambda target=target: seen.append(target()))
                thread.start()
                thread.join()
        assert seen == [(None,), ("a",)]

    def test_other_pool_runs_bound_functions_in_their_session(self):
        with ThreadPoolExecutor(1) as pool:
            with session_scope("a"):
                assert pool.submit(bind_session(see)).result() == ("a",)
            assert pool.submit(see).result() == (None,)

    def test_the_executor_binds_at_the_call(self):
        with SessionThreadPoolExecutor(1) as pool:
            gate = threading.Event()
            pool.submit(gate.wait, 10)
            with session_scope("a"):
                one = pool.submit(see, 1)
                two = pool.map(see, [2, 3])
            with session_scope("b"):
                three = pool.submit(see)
            four = pool.submit(see)
            gate.set()
            assert one.result() == ("a", 1)
            assert list(two) == [("a", 2), ("a", 3)]
            assert three.result() == ("b",)
            assert four.result() == (None,)

    @with_buffersize
    def test_map_with_a_buffer_binds_at_the_call(self):
        with SessionThreadPoolExecutor(2) as pool:
            with session_scope("a"):
                other.set("a's")
                results = pool.map(
                    lambda number: (*see(number), other.get()), range(9), buffersize=2
                )
            with session_scope("b"):
                other.set("b's")
                assert list(results) == [("a", number, "a's") for number in range(9)]

    def test_thread_executor_carries_the_whole_context(self):
        other.set("traced")
        with SessionThreadPoolExecutor(1) as pool:
            assert pool.submit(other.get).result() == "traced"
        threads_inherit = getattr(sys.flags, "thread_inherit_context", False)
        with ThreadPoolExecutor(1) as pool:
            alone = pool.submit(other.get).result()
        assert alone == ("traced" if threads_inherit else "unset")

    def test_error_comes_back_and_no_session_stays_on_the_worker(self):
        with SessionThreadPoolExecutor(1) as pool:
            with session_scope("a"), pytest.raises(KeyError, match="a"):
                pool.submit(fail).result()
            assert pool.submit(see).result() == (None,)

    def test_call_submitted_by_a_call_is_in_its_session(self):
        with SessionThreadPoolExecutor(2) as pool, session_scope("a"):
            assert pool.submit(lambda: pool.submit(see).result()).result() == ("a",)

    def test_a_generator_function_is_covered_wherever_it_is_driven(self):
        with SessionThreadPoolExecutor(1) as pool:
            with session_scope("a"):
                steps = pool.submit(see_all).result()
            assert list(steps) == ["a"]

    def test_submitting_what_is_not_callable_is_a_type_error(self):
        with SessionThreadPoolExecutor(1) as pool, pytest.raises(TypeError):
            pool.submit(5)


class TestAsyncio:
    def test_to_thread_carries_it_and_run_in_executor_does_when_bound(self):
        async def main():
            loop = asyncio.get_running_loop()
            with session_scope("a"):
                return [
                    await asyncio.to_thread(see),
                    await loop.run_in_executor(None, see),
                    await loop.run_in_executor(None, bind_session(see)),
                ]

        assert asyncio.run(main()) == [("a",), (None,), ("a",)]

    def test_thread_executor_under_an_event_loop(self):
        async def main(pool):
            loop = asyncio.get_running_loop()
            with session_scope("a"):
                return await loop.run_in_executor(pool, see)

        with SessionThreadPoolExecutor(1) as pool:
            assert asyncio.run(main(pool)) == ("a",)


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def start(request):
    return multiprocessing.get_context(request.param)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestProcesses:
    def test_the_executor_binds_at_the_call(self, start):
        with SessionProcessPoolExecutor(1, mp_context=start) as pool:
            with session_scope("a"):
                one = pool.submit(see, 1)
                two = pool.map(see, range(6), chunksize=2)
            with session_scope("b"):
                three = pool.submit(work_then_see, 1)
            assert one.result(60) == ("a", 1)
            assert list(two) == [("a", number) for number in range(6)]
            assert three.result(60) == "b"
            assert pool.submit(see).result(60) == (None,)

    @with_buffersize
    def test_map_with_a_buffer_binds_at_the_call(self, start):
        with SessionProcessPoolExecutor(1, mp_context=start) as pool:
            with session_scope("a"):
                results = pool.map(see, range(4), buffersize=1)
            with session_scope("b"):
                assert list(results) == [("a", number) for number in range(4)]

    def test_other_pool_runs_bound_functions_in_their_session(self, start):
        with ProcessPoolExecutor(1, mp_context=start) as pool:
            with session_scope("a"):
                # The worker starts inside the scope, and must not stay in it.
                assert pool.submit(bind_session(see), 1).result(60) == ("a", 1)
                assert pool.submit(see).result(60) == (None,)
            assert pool.submit(see).result(60) == (None,)

    def test_parent_comes_along_to_processes(self, start):
        with SessionProcessPoolExecutor(1, mp_context=start) as pool:
            with session_scope("main"), session_scope("sub"):
                in_sub = pool.submit(family)
            with session_scope("sub", parent="named"):
                in_named = pool.submit(family)
            assert in_sub.result(60) == ("sub", "main")
            assert in_named.result(60) == ("sub", "named")
            assert pool.submit(family).result(60) == (None, None)

    def test_new_process_has_a_session_only_if_its_target_is_bound(self, start):
        with session_scope("a"):
            results = start.SimpleQueue()
            for target in (_put, bind_session(_put)):
                process = start.Process(target=target, args=(results,))
                process.start()
                process.join(60)
        assert [results.get(), results.get()] == [None, "a"]

    def test_error_comes_back_from_a_process(self, start):
        with SessionProcessPoolExecutor(1, mp_context=start) as pool:
            with session_scope("a"), pytest.raises(KeyError, match="a"):
                pool.submit(fail).result(60)
            with no_session():
                assert pool.submit(see).result(60) == (None,)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="there are no interpreter pools")
class TestInterpreters:
    def test_the_executor_binds_at_the_call(self):
        with interpreters.SessionInterpreterPoolExecutor(1) as pool:
            with session_scope("a"):
                one = pool.submit(current_session_id)
                two = pool.map(operator.call, [current_session_id] * 2)
                three = pool.map(operator.call, [current_session_id] * 3, buffersize=1)
            with session_scope("main"), session_scope("b"):
                four = pool.submit(parent_session_id)
                assert list(three) == ["a"] * 3
            assert one.result() == "a"
            assert list(two) == ["a"] * 2
            assert four.result() == "main"
            assert pool.submit(current_session_id).result() is None

    def test_initializer_may_be_carry_session_itself(self):
        pool = interpreters.SessionInterpreterPoolExecutor(1, initializer=carry_session)
        with pool, session_scope("a"):
            assert pool.submit(current_session_id).result() == "a"

    def test_bound_function_keeps_its_session_in_a_plain_pool(self):
        from concurrent.futures import InterpreterPoolExecutor

        with InterpreterPoolExecutor(1) as pool:
            with session_scope("a"):
                assert pool.submit(bind_session(current_session_id)).result() == "a"
            assert pool.submit(current_session_id).result() is None


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there are interpreter pools")
def test_interpreter_pools_of_an_old_python_are_an_import_error():
    with pytest.raises(ImportError, match=r"needs Python 3\.14 or later"):
        interpreters.SessionInterpreterPoolExecutor  # noqa: B018


def _put(results):
    results.put(current_session_id())


@pytest.mark.parametrize("library", ["multiprocessing", "billiard", "multiprocess"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_that_a_copy_of_multiprocessing_forks_has_no_session(library):
    """Celery brings billiard, and pathos multiprocess."""
    forking = importlib.import_module(library).get_context("fork")
    with session_scope("a"), forking.Pool(1) as pool:
        in_scope = pool.apply(see)
        in_session = pool.apply(bind_session(see))
    assert (in_scope, in_session) == ((None,), ("a",))


def test_child_of_os_fork_stays_in_its_scope_without_multiprocessing():
    check = """if True:
        import os, sys
        from cagent_session import current_session_id, session_scope
        sys.modules.pop("multiprocessing.util", None)  # imported where coverage is on
        with session_scope("a"):
            child = os.fork()
            if child == 0:
                os._exit(0 if current_session_id() == "a" else 1)
        sys.exit(os.waitpid(child, 0)[1])
    """
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_child_of_os_fork_stays_in_its_scope():
    """It is the same code, half-way through the same with block."""
    read, write = os.pipe()
    with session_scope("a"):
        child = os.fork()
        if child == 0:
            os.write(write, str(current_session_id()).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        assert stream.read() == "a"
    assert os.waitpid(child, 0)[1] == 0
    assert current_session_id() is None

"""Parent and root of a session: how they are inferred, and where they are carried."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import pickle
import threading

import pytest
from support.proxies import TextProxy

from cagent_session import (
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    no_session,
    parent_session_id,
    received_session,
    root_session_id,
    session_from,
    session_scope,
)


def who() -> tuple[str | None, str | None]:
    return current_session_id(), parent_session_id()


def family() -> tuple[str | None, str | None, str | None]:
    return *who(), root_session_id()


class TestInference:
    def test_a_session_inside_another_is_its_child(self):
        assert who() == (None, None)
        with session_scope("main"):
            assert who() == ("main", None)
            with session_scope("sub"):
                assert who() == ("sub", "main")
                with session_scope("sub-sub"):
                    assert who() == ("sub-sub", "sub")
                assert who() == ("sub", "main")

    def test_the_current_session_again_keeps_its_parent(self):
        with session_scope("main"), session_scope("sub"), session_scope("sub"):
            assert who() == ("sub", "main")

    def test_a_known_ancestor_keeps_the_parent_that_it_had(self):
        with session_scope("root"), session_scope("main"), session_scope("sub"):
            with session_scope("main"):  # its compaction, asked for by the sub-agent
                assert who() == ("main", "root")
                with session_scope("other"):
                    assert who() == ("other", "main")
            with session_scope("root"):
                assert who() == ("root", None)
            assert who() == ("sub", "main")

    def test_no_session_has_no_parent(self):
        with session_scope("main"), no_session():
            assert who() == (None, None)
            with session_scope("sub"):
                assert who() == ("sub", None)

    def test_a_parent_that_is_named_overrules_it(self):
        with session_scope("main"), session_scope("sub", parent="other"):
            assert who() == ("sub", "other")
            with session_scope("sub"):
                assert who() == ("sub", "other")
        with session_scope("sub", parent="main"):
            assert who() == ("sub", "main")
        with session_scope("root"), session_scope("main"), session_scope("main", parent="x"):
            assert who() == ("main", "x")

    def test_a_named_parent_that_is_known_has_its_own(self):
        with session_scope("root"), session_scope("main"), session_scope("sub"):
            second = session_scope("second", parent="main")
            with second, session_scope("main"):
                assert who() == ("main", "root")

    def test_fresh_sessions_are_children_too(self):
        with session_scope("main"), session_scope():
            assert parent_session_id() == "main"

    def test_nearest_32_ancestors_keep_their_parents(self):
        with contextlib.ExitStack() as opened:
            for number in range(40):
                opened.enter_context(session_scope(f"s{number}"))
            families = []
            for number in range(40):
                with session_scope(f"s{number}"):
                    families.append(family())
        assert families == [
            ("s0", None, "s0"),
            *((f"s{n}", "s39", "s0") for n in range(1, 6)),  # forgotten: a new session
            ("s6", None, "s0"),  # its parent is forgotten, the root is not
            *((f"s{n}", f"s{n - 1}", "s0") for n in range(7, 40)),
        ]

    def test_parent_is_known_in_a_long_chain(self):
        def deeper(depth: int) -> None:
            with session_scope(f"s{depth}"):
                assert who() == (f"s{depth}", f"s{depth - 1}" if depth else None)
                if depth < 200:
                    deeper(depth + 1)

        deeper(0)


class TestRoot:
    def test_outside_every_session_there_is_none(self):
        assert root_session_id() is None
        with session_scope("main"), no_session():
            assert root_session_id() is None

    def test_session_without_a_parent_is_its_own_root(self):
        with session_scope("main"):
            assert root_session_id() == "main"

    def test_root_is_kept_however_long_the_chain(self):
        with contextlib.ExitStack() as opened:
            for number in range(200):
                opened.enter_context(session_scope(f"s{number}"))
                assert root_session_id() == "s0"
            with session_scope("s0"):
                assert family() == ("s0", None, "s0")

    def test_ancestor_entered_again_keeps_the_root(self):
        with session_scope("main"), session_scope("sub"), session_scope("leaf"):
            with session_scope("sub"):
                assert family() == ("sub", "main", "main")
            with session_scope("main"):
                assert family() == ("main", None, "main")

    def test_named_parent_that_is_unknown_is_the_root(self):
        with session_scope("main"), session_scope("sub", parent="other"):
            assert family() == ("sub", "other", "other")

    def test_named_parent_that_is_an_ancestor_keeps_the_root(self):
        sibling = session_scope("sibling", parent="sub")
        with session_scope("main"), session_scope("sub"), session_scope("leaf"), sibling:
            assert family() == ("sibling", "sub", "main")

    def test_bound_function_has_the_root(self):
        with session_scope("main"), session_scope("sub"):
            bound = pickle.loads(pickle.dumps(bind_session(family)))
        assert bound() == ("sub", "main", "main")


class TestFunctions:
    def test_decorated_functions_infer_the_parent(self):
        @session_scope("sub")
        def fn():
            return who()

        @session_from("name")
        async def coroutine(name):
            return who()

        with session_scope("main"):
            assert fn() == ("sub", "main")
            assert asyncio.run(coroutine("sub")) == ("sub", "main")
        assert fn() == ("sub", None)

    def test_first_step_of_a_generator_decides_the_parent(self):
        @session_scope("sub")
        def steps():
            while True:
                yield who()

        with session_scope("made"):
            generator = steps()
        with session_scope("first"):
            assert next(generator) == ("sub", "first")
            assert who() == ("first", None)
        with session_scope("second"):
            assert next(generator) == ("sub", "first")
        generator.close()

    def test_first_step_of_a_coroutine_decides_the_parent(self):
        @session_scope("sub")
        async def coroutine():
            await asyncio.sleep(0)
            return who()

        async def main():
            with session_scope("made"):
                made = coroutine()
            with session_scope("first"):
                return await made

        assert asyncio.run(main()) == ("sub", "first")


class TestCarrying:
    def test_parent_is_carried_to_threads_and_pools(self):
        seen = []
        with session_scope("root"), session_scope("main"), session_scope("sub"):
            bound = bind_session(lambda: seen.append(who()))
            with SessionThreadPoolExecutor() as pool:
                assert pool.submit(who).result() == ("sub", "main")
        thread = threading.Thread(target=bound)
        thread.start()
        thread.join()
        assert seen == [("sub", "main")]

    def test_all_ancestors_come_along(self):
        with session_scope("root"), session_scope("main"), session_scope("sub"):
            bound = pickle.loads(pickle.dumps(bind_session(_who_in_main)))
        assert bound() == ("main", "root")

    def test_function_bound_outside_every_session_has_no_parent(self):
        bound = bind_session(who)
        with session_scope("main"):
            assert bound() == (None, None)
            with session_scope("sub"):
                assert bound() == (None, None)

    def test_task_has_session_and_parent_of_its_creator(self):
        async def main():
            with session_scope("main"), session_scope("sub"):
                return await asyncio.create_task(_who())

        assert asyncio.run(main()) == ("sub", "main")

    def test_copied_context_has_session_and_parent(self):
        with session_scope("main"), session_scope("sub"):
            context = contextvars.copy_context()
        assert context.run(who) == ("sub", "main")


def _who_in_main():
    with session_scope("main"):
        return who()


async def _who():
    return who()


class TestReceived:
    def test_received_session_infers_no_parent(self):
        with session_scope("main"):
            with received_session("s1") as session_id:
                assert session_id == "s1"
                assert who() == ("s1", None)
                with session_scope("sub"):
                    assert who() == ("sub", "s1")
            with received_session("s1", parent="p"):
                assert who() == ("s1", "p")
            with received_session("main"):
                assert who() == ("main", None)
            with received_session(None) as session_id:
                assert session_id is None
                assert who() == (None, None)
            assert who() == ("main", None)

    def test_root_is_the_given_one_or_the_parent_or_the_session(self):
        for given, expected in (
            ({}, ("s1", None, "s1")),
            ({"parent": "p"}, ("s1", "p", "p")),
            ({"parent": "p", "root": "r"}, ("s1", "p", "r")),
            ({"root": "r"}, ("s1", None, "r")),
        ):
            with session_scope("main"), received_session("s1", **given):
                assert family() == expected
                with session_scope("sub"):
                    assert family() == ("sub", "s1", expected[2])

    def test_parent_entered_in_a_received_session_keeps_the_root(self):
        with received_session("s1", parent="p", root="r"):
            with session_scope("p"):
                assert family() == ("p", None, "r")
            with session_scope("r"):
                assert family() == ("r", None, "r")

    def test_received_session_closes_scopes_that_are_left_open(self):
        with session_scope("outer"):
            with received_session("s1"):
                session_scope("left-open").__enter__()
                assert current_session_id() == "left-open"
            assert current_session_id() == "outer"

    def test_one_object_can_be_entered_again_and_inside_itself(self):
        received = received_session("s1")
        with received, received:
            assert current_session_id() == "s1"
        with received:
            session_scope("left-open").__enter__()
        with received:
            assert current_session_id() == "s1"
        assert current_session_id() is None

    @pytest.mark.parametrize("value", ["", "a b", "x" * 257, "é", b"s1", 5, TextProxy("s1")])
    def test_a_malformed_id_is_none_and_a_warning(self, value, caplog):
        with received_session(value, parent="p"):
            assert who() == (None, None)
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("cagent_session", "WARNING")
        assert record.getMessage().isprintable()

    @pytest.mark.parametrize("value", ["", "a b", "x" * 257, 5])
    def test_a_malformed_parent_keeps_the_session(self, value, caplog):
        with received_session("s1", parent=value):
            assert who() == ("s1", None)
        (record,) = caplog.records
        assert "parent session ID" in record.getMessage()

    @pytest.mark.parametrize("value", ["", "a b", "x" * 257, 5])
    def test_a_malformed_root_is_left_out(self, value, caplog):
        with received_session("s1", parent="p", root=value):
            assert family() == ("s1", "p", "p")
        (record,) = caplog.records
        assert "root session ID" in record.getMessage()

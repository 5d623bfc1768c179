"""Annotations of decorated and bound functions, also such that cannot be evaluated (PEP 649)."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing

import pytest

from cagent_session import bind_session, current_session_id, no_session, session_from, session_scope

# Compiled without the future import of this file: on 3.14 the annotations are evaluated lazily.
SOURCE = """
import typing
from cagent_session import current_session_id, session_from
if typing.TYPE_CHECKING:
    from nowhere import Job

def run(job: Job, other: "str" = "") -> Later:
    return current_session_id()

class Agent:
    def step(self, other: "Agent" | Other = None) -> Agent:
        return current_session_id()

    @session_from("self.id")
    def decorated(self, other: "Agent" | Other = None) -> Agent:
        return current_session_id()

    @session_from("name")
    @classmethod
    def make(cls, name: Undefined):
        return current_session_id()

    id = "a"

class Later: pass
"""

lazily = pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")


@pytest.fixture
def module():
    module = types.ModuleType("module")
    exec(compile(SOURCE, "module", "exec", dont_inherit=True), vars(module))
    return module


@lazily
class TestAnnotationsThatCannotBeEvaluated:
    def test_session_from_takes_functions_and_methods(self, module):
        job = types.SimpleNamespace(id="j")
        assert session_from("job.id")(module.run)(job) == "j"
        assert session_from("self.id")(module.Agent.step)(module.Agent()) == "a"
        assert module.Agent().decorated() == "a"
        assert module.Agent.make("m") == "m"

    def test_scopes_and_bind_session_take_them(self, module):
        assert session_scope("s")(module.run)(1) == "s"
        assert no_session()(module.run)(1) is None
        with session_scope("b"):
            bound = bind_session(module.run)
        assert bound(1) == "b"

    def test_what_is_defined_later_is_found_then(self, module):
        wrapped = [
            bind_session(module.run),
            session_scope("s")(module.run),
            session_from("job")(module.run),
        ]
        for fn in wrapped:
            with pytest.raises(NameError, match="Job"):
                _ = fn.__annotations__
        module.Job = int
        expected = {"job": int, "other": str, "return": module.Later}
        for fn in wrapped:
            assert fn.__annotations__ == {**expected, "other": "str"}
            assert typing.get_type_hints(fn) == expected


def tool(city: str, days: int = 3) -> list[str]:
    """Weather."""
    return [city] * days


async def coroutine(city: str) -> str:
    return city


class Tool:
    def __call__(self, city: str) -> str:
        return city

    def run(self, city: str) -> str:
        return city


@pytest.mark.parametrize("wrap", [bind_session, session_scope("s")])
class TestAnnotationsOfWhatIsWrapped:
    @pytest.mark.parametrize("fn", [tool, coroutine, Tool().run])
    def test_are_those_of_the_function(self, wrap, fn):
        wrapped = wrap(fn)
        assert wrapped.__annotations__ == fn.__annotations__
        assert inspect.get_annotations(wrapped) == inspect.get_annotations(fn)
        assert typing.get_type_hints(wrapped) == typing.get_type_hints(fn)
        assert inspect.signature(wrapped) == inspect.signature(fn)

    @pytest.mark.parametrize("fn", [len, Tool(), functools.partial(tool, "x"), "x".upper])
    def test_are_none_for_what_has_none(self, wrap, fn):
        assert typing.get_type_hints(wrap(fn)) == {}


class TestPartialAsClassAttribute:
    def test_is_a_method_if_python_makes_it_one(self):
        def see(*arguments):
            return len(arguments), current_session_id()

        class Agent:
            decorated = session_scope("a")(functools.partial(see, 1))
            twice = no_session()(session_scope("a")(functools.partial(see, 1)))
            bound = bind_session(functools.partial(see, 1))
            decorated_bound = session_scope("a")(bind_session(functools.partial(see, 1)))

        expected = 2 if sys.version_info >= (3, 14) else 1
        agent = Agent()
        assert agent.decorated() == agent.twice() == (expected, "a")
        assert Agent.decorated() == (1, "a")
        assert agent.bound() == agent.decorated_bound() == (1, None)

"""DSPy, which calls its models by LiteLLM."""

from __future__ import annotations

import dspy
import page
import pytest
from mock_model import question

from cagent_session import session_scope

pytestmark = pytest.mark.usefixtures("two_lines")


class Ask(dspy.Module):
    def forward(self, task):
        return dspy.Prediction(answer=dspy.settings.lm(task)[0])

    async def aforward(self, task):
        return dspy.Prediction(answer=(await dspy.settings.lm.acall(task))[0])


@pytest.fixture
def ask():
    with dspy.context(lm=dspy.LM("openai/gpt-4o-mini", cache=False)):
        yield Ask()


def examples(session_id):
    return [dspy.Example(task=question(session_id)).with_inputs("task")] * 3


def parallel(ask, session_id):
    run = dspy.Parallel(num_threads=2, disable_progress_bar=True)
    return run([(ask, example) for example in examples(session_id)])


def batch(ask, session_id):
    return ask.batch(examples(session_id), num_threads=2, disable_progress_bar=True)


def evaluate(ask, session_id):
    run = dspy.Evaluate(
        devset=examples(session_id),
        metric=lambda example, prediction, trace=None: 1,
        num_threads=2,
        display_progress=False,
    )
    return [prediction for _, prediction, _ in run(ask).results]


@pytest.mark.parametrize("work", [parallel, batch, evaluate])
def test_pools(work, ask, model):
    for session_id in ("s1", "s2"):
        with session_scope(session_id):
            answers = [prediction.answer for prediction in work(ask, session_id)]
        assert answers == [f"done for {session_id}"] * 3
    assert model.count == {"s1": 3, "s2": 3}


def test_calls_at_once(ask, model, run_at_once):
    """Awaited ones, which go over aiohttp, and blocking ones that are made asynchronous."""

    async def work(session_id):
        task = question(session_id)
        return (await ask.acall(task=task)).answer, (await dspy.asyncify(ask)(task=task)).answer

    assert run_at_once(work, "s1", "s2") == [("done for s1",) * 2, ("done for s2",) * 2]
    assert model.count == {"s1": 2, "s2": 2}


def test_the_page(run_section):
    run_section("DSPy", page.TWO_LINES)

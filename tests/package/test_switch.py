"""What ``instrument`` and ``carry_session`` put in force, and take back: calls, and blocks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from cagent_session import Gateway, instrument, uninstrument
from cagent_session._patching import Switch
from cagent_session._transports import instrument as patches
from cagent_session.integrations import threads
from cagent_session.integrations.threads import carry_session


class Seen:
    """A switch, and the value that it has in force."""

    off = "off"

    def __init__(self) -> None:
        self.switch = Switch(self.off)

    @property
    def value(self) -> str:
        return self.switch.last.value


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(params=["instrument", "carry_session"])
def block(request) -> Iterator[Callable[[], contextlib.AbstractContextManager[object]]]:
    """Makes a block of one of the two, which is switched off before and afterwards."""
    if request.param == "carry_session":
        threads._switch.put_for_good(False)
        yield carry_session
        threads._switch.put_for_good(False)
    else:
        gateway = Gateway("https://gateway.example", forward="https://api.openai.com/v1")
        uninstrument()
        yield lambda: instrument(gateway)
        uninstrument()


def is_on() -> bool:
    return bool(threads._switch.last.value or patches._switch.last.value)


class TestBlocksThatOverlap:
    def test_in_two_tasks(self, block):
        async def main() -> list[bool]:
            found, first_ended, second_began = [], asyncio.Event(), asyncio.Event()

            async def first() -> None:
                with block():
                    await second_began.wait()
                first_ended.set()

            async def second() -> None:
                with block():
                    second_began.set()
                    await first_ended.wait()
                    found.append(is_on())

            await asyncio.gather(first(), second())
            return [*found, is_on()]

        assert asyncio.run(main()) == [True, False]

    def test_in_eight_threads_for_three_hundred_blocks_each(self, block):
        found: list[bool] = []

        def work(seed: int) -> None:
            chosen = random.Random(seed)
            for _ in range(300):
                with contextlib.ExitStack() as stack:
                    for _ in range(chosen.randrange(1, 4)):
                        stack.enter_context(block())
                    found.append(is_on())

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert found == [True] * 2400
        assert not is_on()

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_end_in_any_order(self, seen: Seen, order: str):
        blocks = {"a": seen.switch.put("a"), "b": seen.switch.put("b")}
        for each in blocks.values():
            each.__enter__()
        assert seen.value == "b"
        blocks.pop(order[0]).__exit__(None, None, None)
        assert seen.value == order[1]
        blocks.pop(order[1]).__exit__(None, None, None)
        assert seen.value == seen.off

    def test_random_programs(self, seen: Seen):
        """The youngest open block counts, and at the end what was in force before them all."""
        for seed in range(500):
            chosen = random.Random(seed)
            before = chosen.choice([seen.off, "before"])
            seen.switch.put_for_good(before)
            opened: list[tuple[str, contextlib.AbstractContextManager[object]]] = []
            for step in range(chosen.randrange(40)):
                if opened and chosen.random() < 0.5:
                    _, ended = opened.pop(chosen.randrange(len(opened)))
                    ended.__exit__(None, None, None)
                else:
                    made = seen.switch.put(f"{seed}.{step}")
                    made.__enter__()
                    opened.append((f"{seed}.{step}", made))
                assert seen.value == (opened[-1][0] if opened else before)
            for _, each in opened:
                each.__exit__(None, None, None)
            assert seen.value == before


class TestCallsForGood:
    def test_last_until_the_block_around_them_ends(self, seen: Seen):
        seen.switch.put("before")
        with seen.switch.put("block"):
            seen.switch.put("for good")
            assert seen.value == "for good"
            seen.switch.put_for_good(seen.off)
            assert seen.value == seen.off
        assert seen.value == "before"

    def test_go_with_the_block_around_them_though_another_is_open(self, seen: Seen):
        around, other = seen.switch.put("around"), seen.switch.put("other")
        with contextlib.ExitStack() as stack:
            around.__enter__()
            seen.switch.put("for good")
            stack.enter_context(other)
            around.__exit__(None, None, None)
            assert seen.value == "other"
        assert seen.value == seen.off

    def test_between_a_call_and_its_block_go_with_the_block(self, seen: Seen):
        switched = seen.switch.put("block")
        seen.switch.put("for good")
        with switched:
            assert seen.value == "block"
        assert seen.value == seen.off

    def test_are_not_kept(self, seen: Seen):
        with seen.switch.put("block"):
            for number in range(100):
                seen.switch.put(str(number))
                seen.switch.put_for_good(str(number))
            assert seen.switch._length < 20
        assert seen.value == seen.off


def test_a_block_whose_call_was_taken_back_before_it_began_puts_its_value_in_force(seen: Seen):
    first, second = seen.switch.put("first"), seen.switch.put("second")
    with first:
        pass
    assert seen.value == seen.off
    with second:
        assert seen.value == "second"
    assert seen.value == seen.off


def test_one_object_in_two_overlapping_blocks(seen: Seen):
    switched = seen.switch.put("a")
    for step in (switched.__enter__, switched.__enter__):
        step()
        assert seen.value == "a"
    switched.__exit__(None, None, None)
    assert seen.value == "a"
    switched.__exit__(None, None, None)
    assert seen.value == seen.off
    switched.__exit__(None, None, None)
    assert seen.value == seen.off


def test_objects_that_are_let_go_later_are_not_kept(seen: Seen):
    held = seen.switch.put("0")
    for number in range(1, 200):
        held = seen.switch.put(str(number))
    assert held is not None
    assert seen.value == "199"
    assert seen.switch._length < 30


def test_what_a_call_returns_can_be_sent_away_and_switches_nothing_off_there(block):
    """Initializers of interpreter pools and Dask's `run` send it back."""
    with pickle.loads(pickle.dumps(block())):
        assert is_on()
    assert is_on()


class TestBlocksThatTheCollectorEnds:
    """It clears weak references to what is in a cycle, and then closes the generators in it."""

    @staticmethod
    def abandon(seen: Seen) -> None:
        def suspended() -> Iterator[None]:
            with seen.switch.put("abandoned"):
                try:
                    yield
                finally:
                    with seen.switch.put("cleaning up"):
                        seen.switch.put("for good")

        steps = suspended()
        next(steps)
        cycle: list[object] = [steps]
        cycle.append(cycle)

    def test_are_over(self, seen: Seen):
        self.abandon(seen)
        assert seen.value == "abandoned"
        gc.collect()
        assert seen.value == seen.off

    def test_are_over_if_that_is_in_the_middle_of_another_call(self, seen: Seen):
        before = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for number in range(300):
                self.abandon(seen)
                with seen.switch.put("block"):
                    seen.switch.put(str(number))
        finally:
            gc.set_threshold(*before)
        gc.collect()
        assert seen.value == seen.off
        assert seen.switch._length == 1

"""A user's script, so that engines have to pickle by value what it defines and decorates.

``python defined_in_main.py ENGINE`` gives all of it to the engine, from within a session, and
prints as JSON what was seen where it ran: the session and its parent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import types

from cagent_session import (
    bind_session,
    current_session_id,
    no_session,
    parent_session_id,
    session_from,
    session_scope,
)


def seen():
    return [current_session_id(), parent_session_id()]


@session_scope("scope")
def scoped():
    return seen()


@session_scope()
def fresh():
    session_id, parent = seen()
    return [len(session_id), parent]


@session_from("session_id")
def by_argument(session_id):
    return seen()


@session_from("job.session_id")
def by_attribute(job):
    return seen()


@no_session()
def outside():
    return seen()


@session_scope("steps")
def steps():
    yield seen()
    with session_scope("inner"):
        yield seen()
    yield seen()


@session_scope("coroutine")
async def coroutine():
    await asyncio.sleep(0)
    return seen()


@session_from("session_id")
async def async_steps(session_id):
    yield seen()
    await asyncio.sleep(0)
    yield seen()


class Agent:
    def __init__(self, session_id):
        self.session_id = session_id

    def plain(self):
        return seen()

    @session_from("self.session_id")
    def step(self):
        return seen()

    @no_session()
    def report(self):
        return seen()

    @session_scope("class")
    @classmethod
    def of_class(cls):
        return seen()

    @session_scope("static")
    @staticmethod
    def static():
        return seen()

    @session_from("self.session_id")
    def steps(self):
        yield seen()
        yield seen()


class AsyncAgent:
    def __init__(self, session_id):
        self.session_id = session_id

    async def plain(self):
        return seen()

    @session_from("self.session_id")
    async def step(self):
        await asyncio.sleep(0)
        return seen()

    @session_from("self.session_id")
    async def steps(self):
        yield seen()
        await asyncio.sleep(0)
        yield seen()


def drive(fn, *args):
    """A task for the engines that take no generators; between the steps it looks for itself."""
    return [(item, seen()) for item in fn(*args)]


def drive_async(fn, *args):
    async def run():
        return [(item, seen()) async for item in fn(*args)]

    return asyncio.run(run())


def call(fn, *args, **kwargs):
    return fn(*args, **kwargs)


def what_all_take(submit):
    return {
        "plain": submit(seen),
        "scoped": submit(scoped),
        "fresh": submit(fresh),
        "by_argument": submit(by_argument, "argument"),
        "by_attribute": submit(by_attribute, job=types.SimpleNamespace(session_id="job")),
        "outside": submit(outside),
        "driven": submit(drive, steps),
        "driven_async": submit(drive_async, async_steps, "argument"),
        "method": submit(Agent("self").step),
        "bound": submit(bind_session(seen)),
        "bound_scoped": submit(bind_session(scoped)),
        "bound_outside": submit(bind_session(outside)),
        "bound_method": submit(bind_session(Agent("self").step)),
        "driven_bound": submit(drive, bind_session(steps)),
        "plain_again": submit(seen),
    }


def dask():
    from distributed import Client, LocalCluster

    def result(future):
        return future.result()

    def submit(fn, *args, **kwargs):
        return result(client.submit(fn, *args, **kwargs, pure=False))

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        found = what_all_take(submit)
        found["coroutine"] = submit(coroutine)
        found["bound_coroutine"] = submit(bind_session(coroutine))
        agent = result(client.submit(Agent, "self", actor=True))
        found["actor"] = actor(agent, result)
        agent = result(client.submit(AsyncAgent, "self", actor=True))
        found["async_actor"] = async_actor(agent, result)
        found["plain_after_all"] = submit(seen)
    return found


def loky():
    from joblib.externals.loky import get_reusable_executor

    with get_reusable_executor(max_workers=1) as pool:
        return what_all_take(lambda fn, *args, **kwargs: pool.submit(fn, *args, **kwargs).result())


def ray():
    import ray

    def submit(fn, *args, **kwargs):
        # Ray runs functions; a method and whatever is bound goes as an argument of one.
        if not isinstance(fn, types.FunctionType):
            fn, args = call, (fn, *args)
        return ray.get(ray.remote(fn).remote(*args, **kwargs))

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            include_dashboard=False,
            log_to_driver=False,
            num_cpus=1,
        )
        found = what_all_take(submit)
        found["steps"] = list(map(ray.get, ray.remote(steps).remote()))
        agent = ray.remote(Agent).options(num_cpus=0).remote("self")
        found["actor"] = actor(Remote(agent), ray.get)
        found["actor_steps"] = list(map(ray.get, agent.steps.remote()))
        agent = ray.remote(AsyncAgent).options(num_cpus=0).remote("self")
        found["async_actor"] = async_actor(Remote(agent), ray.get)
        found["async_actor_steps"] = list(map(ray.get, agent.steps.remote()))
        found["plain_after_all"] = submit(seen)
        ray.shutdown()
    return found


class Remote:
    """Ray's actor, with methods that are called as those of Dask's are."""

    def __init__(self, agent):
        self._agent = agent

    def __getattr__(self, name):
        return getattr(self._agent, name).remote


def actor(agent, result):
    return {
        "step": result(agent.step()),
        "report": result(agent.report()),
        "of_class": result(agent.of_class()),
        "static": result(agent.static()),
        "plain": result(agent.plain()),
    }


def async_actor(agent, result):
    return {"step": result(agent.step()), "plain": result(agent.plain())}


if __name__ == "__main__":
    with session_scope("main"), session_scope("caller"):
        print(json.dumps(globals()[sys.argv[1]]()))

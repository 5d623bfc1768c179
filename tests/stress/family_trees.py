"""Walks a tree of sessions: what the processes of the test and its Celery workers import.

A node says in which scopes it runs, in what kind of body, how it is started, and which session,
parent and root it has to have there; it is JSON. It calls the gateway with these in the path,
before its children and after them.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import threading
from concurrent.futures import Future

import requests
from celery import Celery

from cagent_session import (
    Gateway,
    SessionProcessPoolExecutor,
    SessionThreadPoolExecutor,
    bind_session,
    no_session,
    session_scope,
)
from cagent_session.integrations.celery import carry_session

app = Celery("family_trees", broker=os.environ["BROKER_URL"])
app.conf.broker_connection_retry_on_startup = True
carry_session(app)

gateway = Gateway(
    os.environ["GATEWAY_URL"],
    forward="https://api.openai.com/v1",
    parent_header="X-Cagent-Parent-Session-Id",
    session_headers={"X-Root": "{root}"},
)
http = requests.Session()
http.trust_env = False
gateway.mount(http, pool_maxsize=64)

threads = SessionThreadPoolExecutor(8)
processes = SessionProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
futures: list[Future[None]] = []


def call(node):
    path = "/".join(map(str, [*node["expected"], node["number"]]))
    http.get(gateway.endpoint(path), timeout=60)


def start_children(node):
    started = []
    for child in node["children"]:
        way = child["way"]
        if way == "here":
            visit(child)
        elif way == "thread":
            thread = threading.Thread(target=bind_session(visit), args=(child,))
            thread.start()
            started.append(thread)
        elif way == "pool":
            futures.append(threads.submit(visit, child))
        elif way == "process":
            futures.append(processes.submit(visit, child))
        else:
            visit_as_task.delay(child)
    for thread in started:
        thread.join()


def function(node):
    call(node)
    start_children(node)
    call(node)


def generator(node):
    call(node)
    yield
    start_children(node)
    yield
    call(node)


async def coroutine(node):
    call(node)
    await asyncio.sleep(0)
    start_children(node)
    await asyncio.sleep(0)
    call(node)


async def async_generator(node):
    call(node)
    yield
    start_children(node)
    await asyncio.sleep(0)
    yield
    call(node)


BODIES = {body.__name__: body for body in (function, generator, coroutine, async_generator)}


def visit(node):
    """Decorated, its first step decides; the later ones are asked for by somebody else."""
    body = BODIES[node["body"]]
    for session_id, options in reversed(node["scopes"]):
        body = (no_session() if session_id is None else session_scope(session_id, **options))(body)
    if node["body"] == "function":
        return body(node)
    if node["body"] == "generator":
        ask = functools.partial(next, body(node))
    elif node["body"] == "coroutine":
        ask = functools.partial(body(node).send, None)
    else:
        ask = functools.partial(all_of(body(node)).send, None)
    try:
        ask()
        with session_scope("whoever-asks"):
            while True:
                ask()
    except StopIteration:
        return None


async def all_of(steps):
    async for _ in steps:
        await asyncio.sleep(0)


@app.task(ignore_result=True)
def visit_as_task(node):
    visit(node)

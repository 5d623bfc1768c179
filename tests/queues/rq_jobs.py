"""The jobs that the tests enqueue, with the lines of the page, as the worker imports them."""

from __future__ import annotations

import os

from redis import Redis
from rq import Worker
from support.pages import snippets

from cagent_session import (
    current_session_id,
    parent_session_id,
    root_session_id,
    session_scope,
)

URL = os.environ["BROKER_URL"]


def read(*_):
    return current_session_id(), parent_session_id(), root_session_id()


def leak():
    session_scope("left-open").__enter__()
    return read()


@session_scope("job")
def decorated():
    return read()


def fail_at_first(key):
    if Redis.from_url(URL).incr(key) == 1:
        raise KeyError(key)
    return read()


for snippet in snippets("integrations.md", "RQ"):
    exec(compile(snippet.replace("redis://127.0.0.1:6379/0", URL), "page", "exec"))


if __name__ == "__main__":
    # What the page warns of.
    with session_scope("of-the-worker"):
        Worker(["default"], connection=Redis.from_url(URL)).work(burst=True)

"""The actors that the tests send to, on the broker of the page, as the worker imports them."""

from __future__ import annotations

import json
import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from redis import Redis
from support.pages import snippets

from cagent_session import (
    current_session_id,
    parent_session_id,
    root_session_id,
    session_scope,
)

URL = os.environ["BROKER_URL"]
redis = Redis.from_url(URL)

if os.environ.get("CARRY_SESSION") == "no":
    dramatiq.set_broker(RedisBroker(url=URL))
else:
    (snippet,) = snippets("integrations.md", "Dramatiq")
    assert "redis://127.0.0.1:6379/0" in snippet
    exec(compile(snippet.replace("redis://127.0.0.1:6379/0", URL), "page", "exec"))


class Between(dramatiq.Middleware):
    """Outside all others, sees what is current on the thread between two messages."""

    def before_process_message(self, broker, message):
        tell("between")


broker = dramatiq.get_broker()
broker.add_middleware(AsyncIO())
broker.middleware.insert(0, Between())


def tell(label):
    found = [label, current_session_id(), parent_session_id(), root_session_id()]
    redis.rpush("between" if label == "between" else "told", json.dumps(found))


@dramatiq.actor
def see(label, *_):
    tell(label)


@dramatiq.actor
async def see_async(label):
    tell(label)


@dramatiq.actor
def leak(label):
    session_scope("left-open").__enter__()
    tell(label)


@dramatiq.actor(max_retries=2, min_backoff=1, max_backoff=1)
def fail_at_first(label):
    tell(label)
    if redis.incr(f"runs-{label}") < 3:
        session_scope("left-open").__enter__()
        raise KeyError(label)


@dramatiq.actor(max_retries=0, on_failure="see_failure")
def fail(label):
    raise KeyError(label)


@dramatiq.actor
def see_failure(message, error):
    tell(message["args"][0])


@dramatiq.actor
def publish(label):
    see.send(f"{label}-same")
    with session_scope("inner"):
        see.send(f"{label}-inner")
    return label

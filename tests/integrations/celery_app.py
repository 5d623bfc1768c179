"""The tasks that the tests publish, as the worker process imports them."""

from __future__ import annotations

import json
import os
import signal
import time

import celery
import celery.signals
import requests
from celery import Celery

from cagent_session import (
    Gateway,
    current_session_id,
    no_session,
    parent_session_id,
    root_session_id,
    session_scope,
)
from cagent_session.integrations.celery import carry_session

app = Celery("celery_app", broker=os.environ["BROKER_URL"], backend=os.environ["BROKER_URL"])
app.conf.broker_connection_retry_on_startup = True
before_tasks = []


@celery.signals.task_prerun.connect
def look(**_):
    """Called before the session of a task is entered: sees what the last one left behind."""
    before_tasks.append(current_session_id())


carry_session(app)
carry_session(celery.current_app)  # a proxy of the same one


@app.task
def see_before_tasks():
    return before_tasks


@app.task
def see(*ignored):
    return current_session_id()


@app.task
def see_family(*ignored):
    return current_session_id(), parent_session_id(), root_session_id()


@app.task
def parent_inside(session_id):
    with session_scope(session_id):
        return parent_session_id()


@app.task
def call(url, path):
    with requests.Session() as http:
        Gateway(url, forward="https://api.openai.com/v1").mount(http)
        http.get(f"{url}/{path}").raise_for_status()
    return current_session_id()


@app.task
def fail():
    raise KeyError(current_session_id())


@app.task(bind=True, max_retries=2)
def retry(self):
    if self.request.retries < 2:
        with session_scope("of-the-attempt"):
            pass
        raise self.retry(countdown=0)
    return current_session_id(), self.request.retries


@app.task(bind=True)
def retry_outside(self):
    if not self.request.retries:
        with no_session():
            raise self.retry(countdown=0)
    return current_session_id()


@app.task
def publish(times):
    if times:
        publish.delay(times - 1)
        app.send_task("celery_app.publish", [0])
    with session_scope("inner"):
        return see_family.delay().id


@app.task
def leak():
    session_scope("leaked").__enter__()


@app.task
def leak_and_fail():
    session_scope("leaked").__enter__()
    raise KeyError


@app.task
def collect(seen):
    return [*seen, current_session_id()]


@app.task(time_limit=1)
def hang():
    time.sleep(60)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_first(key):
    if app.backend.client.incr(key) == 1:
        die()
    return current_session_id(), parent_session_id()


lost = app.task(die, name="lost")
lost_late = app.task(die, name="lost_late", acks_late=True)
requeued = app.task(die_at_first, name="requeued", acks_late=True, reject_on_worker_lost=True)
retried = app.task(
    die_at_first, name="retried", retry_on_worker_lost=True, max_retries=1, default_retry_delay=0
)


def tell(task_id, what):
    found = [what, current_session_id(), parent_session_id()]
    app.backend.client.sadd(f"told-{task_id}", json.dumps(found))


@app.task
def errback(task_id):
    """In the old style, which is a task of its own."""
    tell(task_id, "old")


@app.task
def errback_of(request, exc, traceback):
    """In the new style, which is called at once, where the failure is seen."""
    tell(request.id, type(exc).__name__)


class Telling(app.Task):
    """Tells of its failure, as a task that reports to a gateway would."""

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        tell(task_id, "on_failure")


telling = app.task(hang.run, name="telling", base=Telling, time_limit=1)

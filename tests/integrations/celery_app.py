"""The tasks that the tests publish, as the worker process imports them."""

from __future__ import annotations

import os

import requests
from celery import Celery

from cagent_session import Gateway, current_session_id, no_session, session_scope
from cagent_session.integrations.celery import carry_session

app = Celery("celery_app", broker=os.environ["BROKER_URL"], backend=os.environ["BROKER_URL"])
app.conf.broker_connection_retry_on_startup = True
carry_session(app)
carry_session(app)


@app.task
def see(*ignored):
    return current_session_id()


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
        return see.delay().id


@app.task
def leak():
    session_scope("leaked").__enter__()


@app.task
def collect(seen):
    return [*seen, current_session_id()]

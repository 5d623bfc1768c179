"""Celery: a task runs in the session that published it."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from ..context import boundary, current_session_id
from ..headers import SESSION_ID
from . import missing
from ._inbound import scope_of

try:
    from celery import Celery, Task, signals
except ImportError as error:
    raise ImportError(missing("celery", "celery")) from error

_ATTRIBUTE = "_cagent_session_boundary"
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_everywhere = False


def carry_session(app: Celery | None = None) -> None:
    """Let the tasks of ``app``, or of every Celery app, run in the session that published them.

    Call it where the app is made, in the module that publishers and workers both import.
    Retries, chains, groups, chords and tasks that are published from inside a task stay in the
    session; a task that was published outside every session runs in none. After each task the
    worker is clean again. Calling it twice is harmless. ::

        app = Celery("tasks", broker="redis://...")
        carry_session(app)
    """
    global _everywhere
    if app is None:
        _everywhere = True
        signals.before_task_publish.connect(_on_publish, dispatch_uid=_on_publish)
    elif app not in _apps:
        _apps.add(app)
        # The signal does not say which app publishes, and another app's broker may be a
        # stranger's.
        app.send_task = _stamping(app.send_task)
    signals.task_prerun.connect(_on_prerun, dispatch_uid=_on_prerun)
    signals.task_postrun.connect(_on_postrun, dispatch_uid=_on_postrun)


def _stamp(headers: dict[str, Any]) -> None:
    # Set or taken out, never left: a retry brings along the headers of its first attempt.
    headers.pop(SESSION_ID, None)
    session_id = current_session_id()
    if session_id is not None:
        headers[SESSION_ID] = session_id


def _stamping(send_task: Any) -> Any:
    @functools.wraps(send_task)
    def stamped_send_task(*args: Any, **options: Any) -> Any:
        headers = dict(options.pop("headers", None) or {})
        _stamp(headers)
        return send_task(*args, headers=headers, **options)

    return stamped_send_task


def _on_publish(headers: dict[str, Any], **_: Any) -> None:
    _stamp(headers)


def _on_prerun(sender: Task, **_: Any) -> None:
    if not (_everywhere or sender.app in _apps):
        return
    request = sender.request
    # An eager task runs where it is published, without a message.
    session_id = current_session_id() if request.is_eager else request.get(SESSION_ID)
    entered = boundary(scope_of(session_id, f"the task {sender.name}"))
    entered.__enter__()
    setattr(request, _ATTRIBUTE, entered)


def _on_postrun(sender: Task, **_: Any) -> None:
    entered = getattr(sender.request, _ATTRIBUTE, None)
    if entered is not None:
        entered.__exit__(None, None, None)

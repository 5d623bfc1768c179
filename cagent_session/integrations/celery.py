"""Celery: run each task in the session that published it."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from .._session.handoff import received_session
from .._session.scopes import ResumableScopes, current_lineage
from ..headers import PARENT_SESSION_ID, ROOT_SESSION_ID, SESSION_ID
from . import missing

try:
    from celery import Celery, Task, signals
except ImportError as _error:
    raise ImportError(missing("celery", "celery")) from _error

_ATTRIBUTE = "_cagent_session_entered"
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_everywhere = False


def carry_session(app: Celery | None = None) -> None:
    """Run the tasks of ``app``, or of every Celery app, in the session that published them.

    Call it where the app is made, in the module that publishers and workers both import. The
    session travels in the headers of the message, with its parent and its root. Retries, chains,
    groups, chords, errbacks and tasks that a task publishes stay in the session. A task that was
    published outside every session runs in none. No session stays behind in the worker after a
    task. Calling it twice is harmless.

    :param app: the app. Left out, all apps of this process, including those made later.
    :raises TypeError: for an ``app`` that is none.

    ::

        app = Celery("tasks", broker="redis://...")
        carry_session(app)
    """
    global _everywhere
    # celery.current_app is a proxy.
    app = getattr(app, "_get_current_object", lambda: app)()
    if not isinstance(app, Celery | None):
        raise TypeError(
            f"app must be the Celery app, not {type(app).__name__}: carry_session(app), "
            "or carry_session() for all apps"
        )
    if app is None:
        _everywhere = True
        signals.before_task_publish.connect(_on_publish, dispatch_uid=_on_publish)
    elif app not in _apps:
        _apps.add(app)
        # The signal before_task_publish does not say which app publishes. The session must not
        # get to the broker of another app, which may belong to a stranger.
        app.send_task = _stamping(app.send_task)
    signals.task_prerun.connect(_on_prerun, dispatch_uid=_on_prerun)
    signals.task_postrun.connect(_on_postrun, dispatch_uid=_on_postrun)
    signals.worker_init.connect(_on_worker_init, dispatch_uid=_on_worker_init)


def _is_carried(app: Celery) -> bool:
    return _everywhere or app in _apps


def _stamp(headers: dict[str, Any]) -> None:
    lineage = current_lineage()
    for name, value in (
        (SESSION_ID, lineage.session),
        (PARENT_SESSION_ID, lineage.parent),
        (ROOT_SESSION_ID, lineage.root),
    ):
        # A retry comes with the headers of its first attempt, which may have had another session.
        headers.pop(name, None)
        if value is not None:
            headers[name] = value


def _stamping(send_task: Any) -> Any:
    @functools.wraps(send_task)
    def stamped_send_task(*args: Any, **options: Any) -> Any:
        headers = dict(options.pop("headers", None) or {})
        _stamp(headers)
        return send_task(*args, headers=headers, **options)

    return stamped_send_task


def _session_of(request: Any) -> received_session:
    return received_session(
        request.get(SESSION_ID),
        parent=request.get(PARENT_SESSION_ID),
        root=request.get(ROOT_SESSION_ID),
    )


def _on_worker_init(**_: Any) -> None:
    # Imported here, because a process that only publishes does not need it.
    from celery.worker.request import Request

    # These end a task whose process is lost, is over its time limit or was never asked. They call
    # errbacks and publish retries in the worker's main process, where no signal is sent.
    for name in ("on_failure", "on_timeout", "revoked"):
        method = getattr(Request, name)
        if not hasattr(method, "__wrapped__"):
            setattr(Request, name, _in_session_of_the_task(method))


def _in_session_of_the_task(method: Any) -> Any:
    @functools.wraps(method)
    def in_session(self: Any, *args: Any, **options: Any) -> Any:
        if not _is_carried(self.app):
            return method(self, *args, **options)
        with _session_of(self.request_dict):
            return method(self, *args, **options)

    return in_session


def _on_publish(headers: dict[str, Any], **_: Any) -> None:
    _stamp(headers)


def _on_prerun(sender: Task, **_: Any) -> None:
    if not _is_carried(sender.app):
        return
    request = sender.request
    # An eager task runs inside the call that published it, without a message. The scope is there
    # only to end the scopes that the task leaves open.
    eager = ResumableScopes(current_lineage()) if request.is_eager else None
    entered = eager or _session_of(request)
    entered.__enter__()
    setattr(request, _ATTRIBUTE, entered)


def _on_postrun(sender: Task, **_: Any) -> None:
    entered = getattr(sender.request, _ATTRIBUTE, None)
    if entered is not None:
        entered.__exit__(None, None, None)

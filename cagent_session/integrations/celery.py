"""Celery: a task runs in the session that published it."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from .._session.handoff import received_session
from .._session.scopes import current_lineage
from ..headers import PARENT_SESSION_ID, SESSION_ID
from . import missing

try:
    from celery import Celery, Task, signals
except ImportError as _error:
    raise ImportError(missing("celery", "celery")) from _error

_ATTRIBUTE = "_cagent_session_entered"
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_everywhere = False


def carry_session(app: Celery | None = None) -> None:
    """Let the tasks of ``app``, or of every Celery app, run in the session that published them.

    Call it where the app is made, in the module that publishers and workers both import.
    Retries, chains, groups, chords, errbacks and tasks that are published from inside a task stay
    in the session, and keep its parent; a task that was published outside every session runs in
    none. After each task the worker is clean again. Calling it twice is harmless.

    :param app: the app; left out, all apps of this process, those to come included.

    ::

        app = Celery("tasks", broker="redis://...")
        carry_session(app)
    """
    global _everywhere
    # celery.current_app is a proxy.
    app = getattr(app, "_get_current_object", lambda: app)()
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
    signals.worker_init.connect(_on_worker_init, dispatch_uid=_on_worker_init)


def _is_carried(app: Celery) -> bool:
    return _everywhere or app in _apps


def _stamp(headers: dict[str, Any]) -> None:
    # Set or taken out, never left: a retry brings along the headers of its first attempt.
    for name, value in zip((SESSION_ID, PARENT_SESSION_ID), current_lineage(), strict=False):
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
    return received_session(request.get(SESSION_ID), parent=request.get(PARENT_SESSION_ID))


def _on_worker_init(**_: Any) -> None:
    # Imported here, as those who only publish do without it.
    from celery.worker.request import Request

    # What ends a task without its process, which was lost, over its time limit or never asked:
    # errbacks are called here, and retries published.
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
    if request.is_eager:
        # It runs where it is published, without a message.
        session_id, parent, root, *_rest = current_lineage()
        entered = received_session(session_id, parent=parent, root=root)
    else:
        entered = _session_of(request)
    entered.__enter__()
    setattr(request, _ATTRIBUTE, entered)


def _on_postrun(sender: Task, **_: Any) -> None:
    entered = getattr(sender.request, _ATTRIBUTE, None)
    if entered is not None:
        entered.__exit__(None, None, None)

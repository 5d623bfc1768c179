"""OpenTelemetry: the session on every span."""

from __future__ import annotations

from .._session.context import current_session_id
from . import missing

try:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor
except ImportError as _error:
    raise ImportError(missing("opentelemetry", "otel")) from _error


class SessionSpanProcessor(SpanProcessor):
    """Sets ``session.id`` and ``gen_ai.conversation.id`` on the spans that start in a session.

    An attribute that a span is started with is kept. ::

        provider = TracerProvider()
        provider.add_span_processor(SessionSpanProcessor())
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK, in the thread and the context that start the span."""
        session_id = current_session_id()
        if session_id is not None:
            for name in ("session.id", "gen_ai.conversation.id"):
                if name not in (span.attributes or {}):
                    span.set_attribute(name, session_id)

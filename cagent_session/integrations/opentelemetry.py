"""OpenTelemetry span processor that sets the session on every span."""

from __future__ import annotations

from .._session.context import current_session_id
from . import missing

try:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor
except ImportError as _error:
    raise ImportError(missing("opentelemetry", "otel", "opentelemetry-sdk")) from _error


class SessionSpanProcessor(SpanProcessor):
    """Set ``session.id`` and ``gen_ai.conversation.id`` on every span that starts in a session.

    An attribute that the span was started with is left as it is. ::

        provider = TracerProvider()
        provider.add_span_processor(SessionSpanProcessor())
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the attributes. The SDK calls this in the thread and context that start the span."""
        session_id = current_session_id()
        if session_id is not None:
            for name in ("session.id", "gen_ai.conversation.id"):
                if name not in (span.attributes or {}):
                    span.set_attribute(name, session_id)

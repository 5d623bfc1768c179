"""A models gateway on loopback, for tests and demos. It needs only the standard library."""

from ._bills import Usage
from ._messages import RecordedRequest
from ._recording_gateway import RecordingGateway

__all__ = ["RecordedRequest", "RecordingGateway", "Usage"]

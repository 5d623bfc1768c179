"""The fixture ``recording_gateway``, for every test suite on a machine with this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import RecordingGateway


@pytest.fixture
def recording_gateway() -> Iterator[RecordingGateway]:
    """A models gateway on loopback that records, bills and limits what it is asked."""
    from .testing import RecordingGateway

    with RecordingGateway() as recording:
        yield recording

"""The pytest fixture ``recording_gateway``.

pytest loads this module in every test run on a machine that has the package, whether it uses the
fixture or not. So all that costs time is imported when the fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import RecordingGateway


@pytest.fixture
def recording_gateway() -> Iterator[RecordingGateway]:
    """A models gateway on 127.0.0.1 that records, bills and limits the calls of each session."""
    from .testing import RecordingGateway

    with RecordingGateway() as recording:
        yield recording

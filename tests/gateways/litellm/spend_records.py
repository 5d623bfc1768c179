"""Writes the rows of LiteLLM's table of spend to a file, where it would write them to Postgres."""

import json
import os
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy.spend_tracking.spend_tracking_utils import get_logging_payload

COLUMNS = ("session_id", "team_id", "spend", "prompt_tokens", "completion_tokens", "request_tags")


class SpendRecords(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        row = get_logging_payload(kwargs, response_obj, start_time, end_time)
        # Called in LiteLLM's event loop: one short line to a local file does not hold it up.
        with Path(os.environ["SPEND_RECORDS"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({column: row[column] for column in COLUMNS}) + "\n")


writer = SpendRecords()

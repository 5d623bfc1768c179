"""The answers of the recording gateway: the user's own, or a reply in a provider's shape."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._messages import Answer, RecordedRequest

_ECHOED = ("method", "path", "query", "session_id", "forward")


def json_answer(status: int, content: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, [json.dumps(content).encode()])


def error(status: int, message: str, kind: str = "invalid_request_error") -> Answer:
    return json_answer(status, {"type": "error", "error": {"type": kind, "message": message}})


def given_answer(given: object) -> Answer | None:
    """Turn the return value of a ``respond`` into an answer; ``None`` leaves it to the gateway.

    :raises TypeError: for a value that cannot be sent.
    :raises ValueError: for a status that no response has.
    """
    if given is None:
        return None
    status, content = given if isinstance(given, tuple) and len(given) == 2 else (200, given)
    if not isinstance(content, dict | list) or not isinstance(status, int):
        raise TypeError(
            "respond must give a dict or a list to send as JSON, (status, dict), or None, "
            f"not {_kind(given)}"
        )
    if not 200 <= status <= 599:
        raise ValueError(f"respond must give a status from 200 to 599, not {status}")
    answer = json_answer(int(status), content)
    answer.prompt_tokens = _tokens(content, "prompt_tokens", "input_tokens")
    answer.completion_tokens = _tokens(content, "completion_tokens", "output_tokens")
    return answer


def _kind(given: object) -> str:
    if not isinstance(given, tuple):
        return type(given).__name__
    return f"({', '.join(type(item).__name__ for item in given)})"


def _tokens(content: object, *names: str) -> int:
    """Return a token count of the answer's ``usage``, under OpenAI's name or Anthropic's."""
    usage = content.get("usage") if isinstance(content, dict) else None
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    return next((count for count in counts if type(count) is int and count > 0), 0)


def model_answer(request: RecordedRequest, reply: str) -> Answer:
    """Answer as the provider of this endpoint would, or echo the request."""
    shape: type[_ChatCompletion | _Message]
    if request.method == "POST" and request.path.endswith("/v1/chat/completions"):
        shape = _ChatCompletion
    elif request.method == "POST" and request.path.endswith("/v1/messages"):
        shape = _Message
    else:
        echo = {name: getattr(request, name) for name in _ECHOED}
        return json_answer(200, echo)
    content = request.json
    messages = content.get("messages")
    if not isinstance(messages, list):
        return error(400, "the body must be a JSON object with a list of messages")
    prompt_tokens = _count_words([content.get("system"), messages])
    completion_tokens = _count_words(reply)
    model = shape(request.model or "recorded", reply, prompt_tokens, completion_tokens)
    if content.get("stream") is True:
        options = content.get("stream_options")
        with_usage = isinstance(options, dict) and options.get("include_usage") is True
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        answer = Answer(200, headers, list(model.events(with_usage)), streamed=True)
    else:
        answer = json_answer(200, model.whole())
    answer.prompt_tokens = prompt_tokens
    answer.completion_tokens = completion_tokens
    return answer


def json_object(body: bytes) -> dict[str, Any]:
    """Return a body that is a JSON object, else an empty ``dict``."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _count_words(content: object) -> int:
    """Count the words of a prompt: of strings, and of strings below keys that hold text."""
    words, todo = 0, [content]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            words += len(item.split())
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += [item.get("content"), item.get("text")]
    return words


@dataclass
class _Shape:
    model: str
    reply: str
    prompt_tokens: int
    completion_tokens: int

    def words(self) -> Iterator[str]:
        for number, word in enumerate(self.reply.split(" ")):
            yield word if number == 0 else f" {word}"


class _ChatCompletion(_Shape):
    """OpenAI's answer to ``/v1/chat/completions``."""

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def common(self, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-recorded",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
        }

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.reply}
        return self.common("chat.completion") | {
            "choices": [
                {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            ],
            "usage": self.usage(),
        }

    def events(self, with_usage: bool) -> Iterator[bytes]:
        common = self.common("chat.completion.chunk")

        def event(**fields: Any) -> bytes:
            return b"data: " + json.dumps(common | fields).encode() + b"\n\n"

        def choice(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
            return event(choices=choices)

        yield choice({"role": "assistant", "content": ""})
        for word in self.words():
            yield choice({"content": word})
        yield choice({}, "stop")
        if with_usage:
            yield event(choices=[], usage=self.usage())
        yield b"data: [DONE]\n\n"


class _Message(_Shape):
    """Anthropic's answer to ``/v1/messages``."""

    def message(self, **fields: Any) -> dict[str, Any]:
        message: dict[str, Any] = {
            "id": "msg_recorded",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        return message | fields

    def whole(self) -> dict[str, Any]:
        return self.message(
            content=[{"type": "text", "text": self.reply}],
            stop_reason="end_turn",
            usage={
                "input_tokens": self.prompt_tokens,
                "output_tokens": self.completion_tokens,
            },
        )

    def events(self, with_usage: bool) -> Iterator[bytes]:
        def event(kind: str, **fields: Any) -> bytes:
            data = json.dumps({"type": kind} | fields)
            return f"event: {kind}\ndata: {data}\n\n".encode()

        yield event("message_start", message=self.message())
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in self.words():
            delta = {"type": "text_delta", "text": word}
            yield event("content_block_delta", index=0, delta=delta)
        yield event("content_block_stop", index=0)
        yield event(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"output_tokens": self.completion_tokens},
        )
        yield event("message_stop")

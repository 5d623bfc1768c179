"""A model on loopback that does what the prompt says, and knows whose call each one should be."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.wire import Arrived, Server, response

FORWARD = "https://api.openai.com/v1"
PARENT_HEADER = "X-Parent-Session-Id"

_TASK = re.compile(r"session ([\w-]+): ([^\n]*)")
_COMMAND = re.compile(r"(\w+)\(([\w-]*)\)")


def prompt(session_id: str) -> str:
    """What every agent here is to do: two tools at once, each with a call, and a sub-agent."""
    return f"session {session_id}: ask({session_id}) ask({session_id}) then research({session_id})"


def sub_prompt(session_id: str) -> str:
    """What the sub-agent of a session is to do, in a session of its own."""
    return f"session {session_id}-sub: ask({session_id}-sub)"


def question(session_id: str) -> str:
    """What a tool asks the model."""
    return f"session {session_id}: "


def bill(*session_ids: str) -> dict[str, int]:
    """The calls that the agents of these sessions make."""
    calls = {"": 3 + 2, "-sub": 2 + 1}  # of the loop, and of the tools
    return {each + suffix: count for each in session_ids for suffix, count in calls.items()}


@dataclass(frozen=True)
class Call:
    """One call of the model: whose it is by its headers, and by its prompt."""

    path: str
    streamed: bool
    wants_usage: bool
    session_id: str | None
    parent: str | None
    forward: str | None
    expected: tuple[str, str | None]

    @property
    def is_right(self) -> bool:
        return (self.session_id, self.parent) == self.expected and self.forward == FORWARD


class Model(Server):
    """Answers as OpenAI does, and as Gemini, streamed or not.

    That is ``/v1/chat/completions``, ``/v1/responses`` and ``/v1/models/...:generateContent``.

    A prompt says whose work it is, and what to do; of several the last one counts::

        session s1: ask(a) ask(b) then research(c)
        session s1-sub: ask(a)                              a child of s1

    The model calls the tools of a step at once, and after the last step it answers
    ``"done for s1"``. Offered no tools, it writes the calls of a step as code.
    """

    def __init__(self) -> None:
        super().__init__(_answer)

    @property
    def calls(self) -> list[Call]:
        return [_call(arrived) for arrived in list(self.arrived)]

    @property
    def wrong(self) -> list[Call]:
        """The calls without a session, in another's, or without the gateway headers."""
        return [call for call in self.calls if not call.is_right]

    @property
    def count(self) -> dict[str | None, int]:
        """The calls per session."""
        sessions = [call.session_id for call in self.calls]
        return {session_id: sessions.count(session_id) for session_id in sessions}


def _call(arrived: Arrived) -> Call:
    asked = json.loads(arrived.body)
    task = _api(arrived)(asked)
    return Call(
        path=arrived.path,
        streamed=_is_streamed(arrived, asked),
        wants_usage=task.wants_usage,
        session_id=arrived.session_id,
        parent=arrived.get(PARENT_HEADER),
        forward=arrived.forward,
        expected=(task.session_id, task.parent),
    )


def _answer(arrived: Arrived) -> bytes:
    asked = json.loads(arrived.body)
    try:
        api = _api(arrived)(asked)
        whole, events = json.dumps(api.whole()).encode(), list(api.events())
    except Exception as error:
        # What no SDK tries again.
        return response(400, json.dumps({"error": {"message": repr(error)}}).encode())
    if not _is_streamed(arrived, asked):
        return response(200, whole)
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in [*events, b""]]
    return head.encode() + b"".join(chunks)


def _api(arrived: Arrived) -> type[_Task]:
    if ":" in arrived.path:
        return _Content
    return _Response if arrived.path.endswith("/responses") else _ChatCompletion


def _is_streamed(arrived: Arrived, asked: dict[str, Any]) -> bool:
    return asked.get("stream") is True or arrived.path.endswith(":streamGenerateContent")


class _Task:
    """What a request asks for, and the answer to it, in the shape of one of the APIs."""

    def __init__(self, asked: dict[str, Any]) -> None:
        turns = list(self.turns(asked))
        last, found = max(
            (number, match)
            for number, (role, text) in enumerate(turns)
            if role in ("user", "system", "developer") and (match := _last(_TASK, text))
        )
        self.session_id, steps = found.groups()
        is_child = self.session_id.endswith("-sub")
        self.parent = self.session_id.removesuffix("-sub") if is_child else None
        since = [role for role, _ in turns[last:]]
        step = [role for role, _ in itertools.groupby(since)].count("assistant")
        commands = [_COMMAND.findall(each) for each in steps.split(" then ")]
        self.id = f"{len(turns)}"
        self.wants_usage = (asked.get("stream_options") or {}).get("include_usage") is True
        self.commands = commands[step] if step < len(commands) else []
        self.tools = {
            (each.get("function") or each)["name"]: (each.get("function") or each)["parameters"]
            for each in asked.get("tools") or []
        }

    def turns(self, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The conversation so far, each time the role and what it said."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def events(self) -> Iterator[bytes]:
        raise NotImplementedError

    @property
    def text(self) -> str:
        if not self.commands:
            return f"done for {self.session_id}"
        lines = [f'{name}("{argument}")' for name, argument in self.commands]
        return "\n".join(["<code>", *lines, "</code>"])

    @property
    def tool_calls(self) -> list[tuple[str, str, str]]:
        """For each its ID, its name and its arguments, the tool's first one given."""
        if not self.tools:
            return []
        return [
            (f"call_{self.id}_{number}", tool, json.dumps(self._arguments(tool, argument)))
            for number, (name, argument) in enumerate(self.commands)
            for tool in [self._offered(name)]
        ]

    def _offered(self, name: str) -> str:
        """Return the tool of that name. Semantic Kernel puts a plugin's name in front."""
        return next(tool for tool in self.tools if tool.rpartition("-")[2] == name)

    def _arguments(self, tool: str, first: str) -> dict[str, str]:
        return dict.fromkeys(list(self.tools[tool].get("properties", ()))[:1], first)


class _ChatCompletion(_Task):
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}  # noqa: RUF012

    def turns(self, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for message in asked["messages"]:
            yield message["role"], _text(message.get("content"))

    def whole(self) -> dict[str, Any]:
        choice = {"index": 0, "message": self._message(), "finish_reason": self._finish_reason}
        return self._common("chat.completion") | {"choices": [choice], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        def event(**fields: Any) -> bytes:
            return _event(self._common("chat.completion.chunk") | {"choices": []} | fields)

        def choice(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
            return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])

        message = self._message()
        yield choice({"role": "assistant", "content": ""})
        for part in (message["content"] or "").splitlines(keepends=True):
            yield choice({"content": part})
        for number, call in enumerate(message.get("tool_calls", [])):
            arguments = {"arguments": call["function"]["arguments"]}
            begun = call | {"index": number, "function": call["function"] | {"arguments": ""}}
            yield choice({"tool_calls": [begun]})
            yield choice({"tool_calls": [{"index": number, "function": arguments}]})
        yield choice({}, self._finish_reason)
        if self.wants_usage:
            yield event(usage=self.usage)
        yield b"data: [DONE]\n\n"

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": 1, "model": "mock"}

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.tool_calls else "stop"

    def _message(self) -> dict[str, Any]:
        if not self.tool_calls:
            return {"role": "assistant", "content": self.text}
        calls = [
            {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
            for each, name, arguments in self.tool_calls
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}


class _Response(_Task):
    def turns(self, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
        given = asked["input"]
        yield "system", asked.get("instructions") or ""
        for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
            if item.get("type") == "function_call":
                yield "assistant", ""
            else:
                yield item.get("role", "tool"), _text(item.get("content"))

    def whole(self) -> dict[str, Any]:
        return self._response("completed", self._output())

    def events(self) -> Iterator[bytes]:
        numbers = itertools.count()

        def event(kind: str, **fields: Any) -> bytes:
            return _event({"type": kind, "sequence_number": next(numbers)} | fields, kind)

        yield event("response.created", response=self._response("in_progress", []))
        for index, item in enumerate(self._output()):
            place = {"output_index": index, "item_id": item["id"]}
            empty = {"content": []} if item["type"] == "message" else {"arguments": ""}
            begun = item | {"status": "in_progress"} | empty
            yield event("response.output_item.added", output_index=index, item=begun)
            if item["type"] == "message":
                part = item["content"][0]
                place["content_index"] = 0
                begun = part | {"text": ""}
                yield event("response.content_part.added", **place, part=begun)
                for line in part["text"].splitlines(keepends=True):
                    yield event("response.output_text.delta", **place, delta=line, logprobs=[])
                yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
                yield event("response.content_part.done", **place, part=part)
            else:
                given = item["arguments"]
                yield event("response.function_call_arguments.delta", **place, delta=given)
                yield event("response.function_call_arguments.done", **place, arguments=given)
            yield event("response.output_item.done", output_index=index, item=item)
        yield event("response.completed", response=self.whole())

    def _output(self) -> list[dict[str, Any]]:
        if not self.tool_calls:
            part = {"type": "output_text", "text": self.text, "annotations": []}
            return [
                {
                    "type": "message",
                    "id": f"msg_{self.id}",
                    "status": "completed",
                    "role": "assistant",
                    "content": [part],
                }
            ]
        return [
            {
                "type": "function_call",
                "id": f"fc_{each}",
                "status": "completed",
                "call_id": each,
                "name": name,
                "arguments": arguments,
            }
            for each, name, arguments in self.tool_calls
        ]

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": "mock",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 1,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 1,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 2,
            },
        }


class _Content(_Task):
    def __init__(self, asked: dict[str, Any]) -> None:
        tools = [
            {"name": each["name"], "parameters": _schema(each)}
            for tool in asked.get("tools", ())
            for each in tool["functionDeclarations"]
        ]
        super().__init__(asked | {"tools": tools})

    def turns(self, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for content in asked["contents"]:
            role = "assistant" if content["role"] == "model" else content["role"]
            yield role, _text(content["parts"])

    def whole(self) -> dict[str, Any]:
        parts = [
            {"functionCall": {"name": name, "args": json.loads(arguments)}}
            for _, name, arguments in self.tool_calls
        ]
        content = {"role": "model", "parts": parts or [{"text": self.text}]}
        usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
        candidate = {"content": content, "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": usage}

    def events(self) -> Iterator[bytes]:
        yield _event(self.whole())


def _schema(declared: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a function, under the names that versions of google-genai send."""
    names = ("parameters_json_schema", "parametersJsonSchema", "parameters")
    return next((declared[name] for name in names if name in declared), {})


def _text(content: Any) -> str:
    """What a message says: its text, or those of its parts."""
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)


def _event(data: dict[str, Any], kind: str | None = None) -> bytes:
    line = f"event: {kind}\n" if kind else ""
    return f"{line}data: {json.dumps(data)}\n\n".encode()

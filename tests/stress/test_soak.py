"""Many threads, all means of this package at once: not one wrong, missing or surplus header.

Every request says in its path which session it is meant for, and the server compares.
``SOAK_REQUESTS`` says how many requests it takes.
"""

from __future__ import annotations

import collections
import os
import random
import threading

import requests
from support.wire import Arrived, Server, redirect, response
from urllib3.util import Retry

from cagent_session import (
    Gateway,
    SessionThreadPoolExecutor,
    bind_session,
    current_session_id,
    no_session,
    session_from,
    session_scope,
)

FORWARD = "https://api.openai.com/v1"
THREADS = 64
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "3200"))


class Checked:
    """Takes the place of the server's list, and keeps what is wrong alone."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.count: collections.Counter[str] = collections.Counter()

    def append(self, request: Arrived) -> None:
        kind, meant, _ = request.path.split("/")[1:]
        self.count[kind] += 1
        marked = kind != "direct"
        session_id = meant if marked and meant != "none" else None
        if (request.session_id, request.forward) != (session_id, FORWARD if marked else None):
            self.wrong.append(request.raw.decode())
        if not marked and request.identifiers:
            self.wrong.append(request.raw.decode())


def respond(request: Arrived) -> bytes:
    if request.path.startswith("/redirect"):
        return redirect(307, request.path.replace("/redirect", "/plain", 1))
    if request.path.startswith("/retry") and random.random() < 0.5:
        return response(503)
    return response()


class Agents:
    def __init__(self, gateway: Gateway, stranger: str, budget: int) -> None:
        # Half of all attempts fail. With 20, so would one run of a million requests in ten.
        retry = Retry(100, status_forcelist=[503], backoff_factor=0, allowed_methods=None)
        self.http = requests.Session()
        self.http.trust_env = False
        gateway.mount(self.http, max_retries=retry, pool_maxsize=THREADS)
        self.gateway = gateway
        self.stranger = stranger
        self.budget = budget
        self.sent: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()
        self.generators: collections.deque = collections.deque()

    def send(self, random: random.Random) -> None:
        meant = current_session_id() or "none"
        kind = random.choice(["plain", "plain", "retry", "redirect", "direct"])
        with self.lock:
            self.sent[kind] += 1
            number = sum(self.sent.values())
        base = self.stranger if kind == "direct" else self.gateway.url
        url = f"{base}/{kind}/{meant}/{number}"
        answer = self.http.post(url, data=b"x", timeout=60)
        assert answer.status_code == 200
        assert current_session_id() == (None if meant == "none" else meant)

    @session_from("name")
    def steps(self, name: str, random: random.Random):
        """A generator that is handed from thread to thread."""
        for number in range(4):
            self.send(random)
            with session_scope(f"{name}-inner{number}"):
                self.send(random)
                yield
                self.send(random)

    def nest(self, name: str, random: random.Random, depth: int) -> None:
        scope = random.choice([session_scope(f"{name}-{depth}"), session_scope(), no_session()])
        with scope:
            self.send(random)
            if depth:
                self.nest(name, random, depth - 1)
            self.send(random)

    def work(self, name: str, errors: list[BaseException]) -> None:
        random_ = random.Random(name)
        try:
            with SessionThreadPoolExecutor(2) as pool:
                while sum(self.sent.values()) < self.budget:
                    self.turn(name, random_, pool)
                    assert current_session_id() is None
        except BaseException as error:
            errors.append(error)
            raise

    def turn(self, name: str, random: random.Random, pool: SessionThreadPoolExecutor) -> None:
        action = random.randrange(5)
        if action == 0:
            self.nest(name, random, 3)
        elif action == 1:
            with session_scope(f"{name}-pool"):
                futures = [pool.submit(self.send, random) for _ in range(3)]
            for future in futures:
                future.result()
        elif action == 2:
            with session_scope(f"{name}-thread"):
                thread = threading.Thread(target=bind_session(self.send), args=(random,))
            thread.start()
            thread.join()
        else:
            if action == 3:
                self.generators.append(self.steps(f"{name}-steps", random))
            try:
                generator = self.generators.popleft()
            except IndexError:
                return
            with session_scope(f"{name}-driver"):
                if next(generator, "ended") != "ended":
                    assert current_session_id() == f"{name}-driver"
                    self.generators.append(generator)


def test_not_one_request_is_attributed_wrongly():
    checked = Checked()
    with Server(respond) as server, Server() as stranger:
        server.arrived = stranger.arrived = checked
        agents = Agents(Gateway(server.origin, forward=FORWARD), stranger.origin, REQUESTS)
        errors: list[BaseException] = []
        threads = [
            threading.Thread(target=agents.work, args=(f"t{number}", errors))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while agents.generators:
            agents.generators.pop().close()
        agents.http.close()
    assert errors == []
    assert checked.wrong == []
    sent, arrived = agents.sent, checked.count
    assert sum(sent.values()) >= REQUESTS
    assert arrived["direct"] == sent["direct"]
    assert arrived["redirect"] == sent["redirect"]
    assert arrived["plain"] == sent["plain"] + sent["redirect"]
    assert arrived["retry"] >= sent["retry"]

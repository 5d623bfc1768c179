"""What is public."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import cagent_session.headers
import cagent_session.testing
from cagent_session import integrations


def public_names() -> Iterator[tuple[str, Any]]:
    for module in (cagent_session, cagent_session.headers, cagent_session.testing):
        for name in module.__all__:
            if name != "__version__":
                yield f"{module.__name__}.{name}", getattr(module, name)
    for info in pkgutil.iter_modules(integrations.__path__, f"{integrations.__name__}."):
        if "._" not in info.name:
            module = importlib.import_module(info.name)
            for name, value in vars(module).items():
                if not name.startswith("_") and getattr(value, "__module__", None) == info.name:
                    yield f"{info.name}.{name}", value

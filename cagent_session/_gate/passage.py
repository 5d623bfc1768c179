"""Know from a request itself that it has passed the gate, and which of its headers the gate set.

A request may come past several places where the gate sits: requests sends over urllib3, and
``instrument`` sits below a mounted adapter. Only the first place is to judge it. A context variable
cannot tell which request that was, because the code that sends a request may send others meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._session.scopes import Lineage
from . import urls

if TYPE_CHECKING:
    from .routes import Route, Router


class Passage:
    """One gateway-bound request, while a transport is sending it.

    A transport makes one for each request, gives it to ``gate()``, which attaches it to headers,
    and sets ``is_open`` to false once the library has sent the request, successfully or not.

    :param method: the request's.
    :param url: the URL that is sent, the gateway's query included.
    :param router: that found the gateway.
    :param layer: in urllib3, which of our two hooks judged the request: ``"pool"`` for a
        ``GatewayPool``, ``"patch"`` for ``instrument``. ``None`` in all other libraries.
    """

    is_open = True  #: until the request has been sent
    lineage: Lineage | None = None  #: of the session in which the gate stamped the request
    route: Route  #: to the gateway for which the gate stamped the request
    #: in aiohttp, the names of session headers at this hop and earlier ones, in lower case
    session_keys: frozenset[str] = frozenset()
    #: in aiohttp, the headers that the stamp has replaced or removed
    replaced: tuple[tuple[Any, str], ...] = ()

    def __init__(self, method: Any, url: Any, router: Router, layer: str | None = None) -> None:
        self.method = method
        self.url = url
        self.router = router
        self.layer = layer

    def covers(self, method: Any, url: Any) -> bool:
        """Return whether a request is the one of this passage, or a copy made further down."""
        return self.is_open and self.method == method and urls.equivalent(str(self.url), str(url))

    def __deepcopy__(self, memo: object) -> Passage:
        return self  # a copy of the request is part of the same passage

    def __reduce__(self) -> Any:
        return type(None), ()  # whoever unpickles the request is not sending it


class SameInCopies:
    """Mixin for values of headers that are known by their class: copies of headers share them."""

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self


class Stamped(SameInCopies, str):
    """The value of a header that the gate set. Copies of the headers keep it, as they share values.

    Values of gateway headers are made once per plan, and shared by all its requests. Values of
    session headers are made for each request, and hold its passage. Where there are none, or where
    urllib3 may drop them, :func:`attach` lets copies of all values hold the passage.
    """

    key: str = ""  #: the name of the header, in lower case
    passage: Passage | None = None
    #: the header of the library's own that this one has replaced, which a copy gets back
    replaces: tuple[str, str] | None = None

    def __reduce__(self) -> Any:
        return str, (str.__str__(self),)  # the process that unpickles it may lack this package


class StampedBytes(SameInCopies, bytes):
    """The same as :class:`Stamped` for httpx, which keeps headers in bytes."""

    key: str = ""
    passage: Passage | None = None
    replaces: tuple[str, bytes] | None = None

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


def lower(name: str | bytes) -> str:
    """Return the key under which headers compare, the same for ``str`` and ``bytes``."""
    return (name if isinstance(name, str) else name.decode("latin-1")).lower()


_STAMPED = frozenset({Stamped, StampedBytes})


def is_stamped(name: str | bytes, value: Any) -> bool:
    """Return whether the gate set this header, for this request or an earlier one.

    The value alone does not tell: a caller may have read it from headers that were sent, and send
    it under a name of their own.
    """
    return value.__class__ in _STAMPED and bool(value.key == lower(name))


def belongs_to_open(name: str | bytes, value: Any) -> bool:
    """Return whether one of the headers of an open passage belongs to its stamp.

    All that the gate has set do, but those that a caller has copied from a request that is over.
    """
    return is_stamped(name, value) and (value.passage is None or value.passage.is_open)


def are_plain_text(values: Iterable[Any]) -> bool:
    """Return whether all values are of the class ``str`` itself, so that none is ours."""
    # The plain code would be all(...). A loop takes two thirds of that time.
    for value in values:  # noqa: SIM110
        if value.__class__ is not str:
            return False
    return True


def are_all_plain_text(items: Iterable[tuple[Any, Any]]) -> bool:
    """Return the same for the values in ``items``, each a name and a value."""
    for _, value in items:  # noqa: SIM110
        if value.__class__ is not str:
            return False
    return True


def attach(passage: Passage | None, stamped: dict[Any, tuple[Any, ...]]) -> None:
    """Let all values that the gate set hold the passage: code further down may drop some of them.

    urllib3 drops ``Authorization`` and others where a pool follows a redirect.
    """
    for key, (*names, value) in stamped.items():
        made = type(value)(value)  # a copy, because other requests share the value
        made.__dict__.update(value.__dict__)
        made.passage = passage
        stamped[key] = (*names, made)


def passage_of(headers: Any, items: Iterable[tuple[Any, ...]], index: int = 1) -> Passage | None:
    """Return the passage that a request's headers hold, or that one of their values holds."""
    passage: Passage | None = getattr(headers, "passage", None)
    return passage_in(items, index) if passage is None else passage


def passage_in(items: Iterable[tuple[Any, ...]], index: int = 1) -> Passage | None:
    """Return the passage that the value of one of some headers holds, an open one if there is.

    A caller may have copied values of earlier requests.

    :param index: where the value is in each header.
    """
    found: Passage | None = None
    for item in items:
        # The plain code would lack the first condition. Hardly any value is stamped, and this says
        # so in half the time.
        kind = item[index].__class__
        if (kind is Stamped or kind is StampedBytes) and is_stamped(item[0], item[index]):
            found = item[index].passage or found
            if found is not None and found.is_open:
                return found
    return found

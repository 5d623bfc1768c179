"""requests: headers whose copies leave the identifiers behind, once the request has been sent.

A redirect, an authentication handler, a response hook: each builds the next request by copying the
last one, without calling the adapter. We cannot know where the copy will be sent. So the headers of
a gateway-bound request are of a class of their own. While the request is in flight, copies are
complete, because urllib3 sends a copy. Once it has been sent, ``copy()`` leaves the identifiers
behind and remembers them; the adapter puts them back when the copy is sent to the same origin.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import ItemsView, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict
from urllib3._collections import HTTPHeaderDict

from .._gate.passage import Passage, is_stamped, lower
from .._gate.routes import BARE, Route, Router, is_identifier, may_get_identifiers
from .._gate.validation import PREFIX
from .._session.scopes import current_lineage
from ..headers import FORWARD
from .mappings import copied

Item: TypeAlias = "tuple[str, str | bytes]"

# To a type checker the mixin is a mapping, like all classes that it is mixed into.
_Base: Any = dict if TYPE_CHECKING else object


class GuardedHeaders(_Base):  # type: ignore[misc]
    """Mixin for the headers of a request that is gateway-bound, and for copies of them.

    Three attributes tell which headers these are. At most one of them is set:

    - ``passage``: an adapter made the headers, to send a stamped request. If ``is_nested``, too, a
      session below has sent them with a request of its own, and makes the next hop from a copy.
    - ``request``: the caller set identifiers on this request, and an adapter has guarded them.
    - ``left``: a copy that was made after sending; it lacks what ``left`` holds.
    - none of the three: a copy that has its identifiers again, or headers that an adapter further
      down made from stamped ones.
    """

    url: str  #: the identifiers may be sent to its origin
    session_keys: frozenset[str]  #: names of session headers, at this hop and earlier ones
    passage: Passage | None
    route: Route = BARE  #: to the gateway whose headers these are
    router: Router = Router()  #: that found it
    is_nested = False  #: see ``passage`` above
    left: tuple[Item, ...] | None = None
    request: weakref.ref[PreparedRequest] | None = None  #: weak, as the request holds the headers
    by_instrument = False  #: whether that was not an adapter of ours, but the patch of requests

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Other code may call type(headers)(...): it gets plain headers. guard() and with_store() do
        # not come through here.
        return _plain_class(cls)(*args, **kwargs)

    @property
    def is_in_flight(self) -> bool:
        """Whether these are the headers of a stamped request that is being sent."""
        return self.passage is not None and self.passage.is_open and not self.is_nested

    def copy(self) -> Any:
        if self.is_in_flight:
            return self._with(self.items(), None, self.passage)
        return self.guarded_copy()

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> Any:
        # Responses are copied deeply to be cached or compared. Such a copy has all headers of the
        # original, and its own copies leave identifiers behind, too.
        return self._with(self.items(), self.left, None if self.is_nested else self.passage)

    def __reduce__(self) -> Any:
        # A response carries its request, and the process that unpickles it may lack this package.
        return _class_of_copies(type(self)), (list(self.items()),)

    def guarded_copy(self) -> GuardedHeaders:
        """Return a copy without the identifiers and without the gateway headers."""
        if self.left is not None:
            return self._with(self.items(), self.left)
        kept: list[Item] = []
        left: list[Item] = []
        for item in self.items():
            if _is_gateway_header(item):
                left.append(item)
                kept += replaced_by(item)
            elif is_identifier(lower(item[0]), self.session_keys):
                left.append(item)
            else:
                kept.append(item)
        return self._with(kept, tuple(left))

    def without_stamp(self) -> GuardedHeaders:
        """Return a copy less what the gate has set."""
        return self._with([item for item in self.items() if not is_stamped(*item)], self.left)

    def nested(self, is_nested: bool) -> GuardedHeaders:
        """Return a complete copy for a request that is, or is not, one of a session below."""
        made = self._with(self.items(), None, self.passage)
        made.is_nested = is_nested
        return made

    def plain(self) -> Any:
        """Return a complete copy in the plain base class."""
        return _class_of_copies(type(self))(self.items())

    def are_callers_own(self, request: PreparedRequest) -> bool:
        """Return whether the caller set identifiers on ``request`` itself, not on one it copies."""
        return self.request is not None and self.request() is request

    def restored_for(self, request: PreparedRequest) -> GuardedHeaders:
        """Return the headers to use now that ``request``, which has these, is being sent.

        A copy gets its identifiers back, but only at their origin. Complete headers lose them at
        another origin, unless the caller set them on this very request, to send it there. Gateway
        headers are not restored, as the gate stamps the request again.
        """
        if self.are_callers_own(request):
            return self
        is_home = may_get_identifiers(self.url, request.url or "")
        if self.left is None:
            if not is_home:
                return self.guarded_copy()
            return self._with(self._without_gateway_headers(), None)
        names = {lower(name) for name in self}
        # With an X-Cagent-Forward, the caller has set identifiers anew, on the copy.
        if not self.left or not is_home or FORWARD.lower() in names:
            return self
        back = [item for item in self.left if lower(item[0]) not in names and _may_return(item)]
        return self._with([*back, *self.items()], None)

    def route_of_copy(self, request: PreparedRequest) -> Route:
        """Return the route for which ``request``, which has these headers, was stamped before.

        :data:`BARE` unless it is a copy that has its identifiers again, and that goes to the same
        gateway. At a path of that gateway there may be another one.
        """
        is_restored = self.left is None and not self.are_callers_own(request)
        if is_restored and self.router.route(request.url or "") is self.route:
            return self.route
        return BARE

    def without_forward(self) -> Any:
        """Return a copy in the plain base class for a request without ``X-Cagent-Forward``.

        The gate sends no ``X-Cagent-*`` without ``X-Cagent-Forward``, so stamped session headers of
        such names come off, too. Those of other names stay, as this is still their origin.
        """
        return _class_of_copies(type(self))(
            item
            for item in self.items()
            if not (is_stamped(*item) and lower(item[0]).startswith(PREFIX))
        )

    def _without_gateway_headers(self) -> list[Item]:
        """Return the headers less the gateway headers, and session headers of another session."""
        kept: list[Item] = []
        for item in self.items():
            if _is_gateway_header(item):
                kept += replaced_by(item)
            elif _may_return(item):
                kept.append(item)
        return kept

    def _with(
        self,
        items: Iterable[Item],
        left: tuple[Item, ...] | None,
        passage: Passage | None = None,
    ) -> GuardedHeaders:
        made = guard(_class_of_copies(type(self))(items), self.url, self.session_keys, passage)
        made.route, made.router = self.route, self.router
        made.left = left
        return made


def _is_gateway_header(item: Item) -> bool:
    """Return whether a header is a gateway header: the gate set it, and not from a session."""
    if not is_stamped(*item):
        return False
    value: Any = item[1]
    # The same name may be a session header of one gateway and a fixed one of another.
    return value.passage is None or value.key not in value.passage.route.session_keys


def _may_return(item: Item) -> bool:
    """Return whether a header may be sent again: the caller's own, or a session header.

    A stamped session header may return only in the session that it was made from, or outside every
    session.
    """
    if not is_stamped(*item):
        return True
    if _is_gateway_header(item):
        return False
    lineage = current_lineage()
    return lineage.session is None or item[1].passage.lineage == lineage  # type: ignore[union-attr]


def replaced_by(item: Item) -> list[Item]:
    """Return the library's own header that a gateway header has replaced, if there was one."""
    replaced = getattr(item[1], "replaces", None)
    return [] if replaced is None else [replaced]


def guard(
    headers: Any, url: str, session_keys: frozenset[str], passage: Passage | None = None
) -> GuardedHeaders:
    """Return guarded headers that share the table of ``headers``, or copy it from a plain mapping.

    :param url: the identifiers may be sent to its origin.
    :param session_keys: the names of session headers, in lower case.
    :param passage: of the request that is about to be sent with them.
    """
    plain: Any = type(headers)
    if isinstance(headers, GuardedHeaders):
        plain = _plain_class(plain)
    if not issubclass(plain, CaseInsensitiveDict | HTTPHeaderDict):
        headers = copied(headers)
        plain = type(headers)
    kind = _guarded_class(plain)
    new: Any = super(GuardedHeaders, kind).__new__
    made: GuardedHeaders = new(kind)
    if plain is dict:
        made.update(headers.items())
    else:
        # The caller may hold the headers and set further ones, so both objects share their table.
        made.__dict__.update(headers.__dict__)
        # Headers that were guarded before may have had these.
        made.left = made.request = None
        made.is_nested = False
        made.route = BARE
    made.url, made.session_keys, made.passage = url, session_keys, passage
    return made


class GuardedCaseInsensitiveDict(GuardedHeaders, CaseInsensitiveDict):  # type: ignore[type-arg]
    """The class for the headers that requests makes.

    urllib3 copies the headers of each request and reads them one by one. Through ``Mapping``, as
    ``CaseInsensitiveDict`` does both, that costs more than the gate; answering from the table
    inside saves all of it.
    """

    def copy(self) -> Any:  # the plain code is the mixin's
        if self.is_in_flight:
            made = with_store(self._store.copy(), self.url, self.session_keys, self.passage)
            made.route, made.router = self.route, self.router
            return made
        return self.guarded_copy()

    __copy__ = copy

    def items(self) -> Any:  # the plain code is Mapping's
        return _Items(self)


class _Items(ItemsView[str, Any]):
    def __iter__(self) -> Any:
        return iter(self._mapping._store.values())  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def _guarded_class(plain: type) -> Any:
    if plain is CaseInsensitiveDict:
        return GuardedCaseInsensitiveDict
    # _plain_class() relies on the order of the bases.
    return type(f"Guarded{plain.__name__}", (GuardedHeaders, plain), {})


# Makes an object without __init__(). Any, because requests declares the table as an OrderedDict.
_new: Any = object.__new__


def with_store(
    store: Mapping[str, Any], url: str, session_keys: frozenset[str], passage: Passage | None
) -> GuardedHeaders:
    """Return guarded headers of requests' usual kind around a table, without copying that.

    The plain code would be ``guard(CaseInsensitiveDict(store.values()), ...)``. That puts one
    header after the other into another table, which costs more than copying the whole request.
    """
    made = _new(GuardedCaseInsensitiveDict)
    made._store, made.url, made.session_keys, made.passage = store, url, session_keys, passage
    return made  # type: ignore[no-any-return]


def _plain_class(kind: type[GuardedHeaders]) -> Any:
    return kind.__mro__[kind.__mro__.index(GuardedHeaders) + 1]


def _class_of_copies(kind: type[GuardedHeaders]) -> Any:
    """Return a class for copies: none of the caller's own, which may have any ``__init__()``."""
    plain = _plain_class(kind)
    bases = (CaseInsensitiveDict, HTTPHeaderDict)
    return next((base for base in bases if issubclass(plain, base)), dict)

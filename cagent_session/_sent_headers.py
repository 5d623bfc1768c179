"""Headers of requests that leave the identifiers behind when they are copied.

A redirect, an authentication handler, a response hook: each makes the next request from a copy of
the last one, and asks nobody. Where that one goes is not ours to guess. So a request that was sent
to a gateway carries headers whose ``copy()`` has no identifiers, and remembers which it had and
where they were sent; they are put back when the copy is sent to the same origin.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict

from . import urls
from ._owners import NOBODY, Owner
from .headers import FORWARD, is_identifier, lower

_Item: TypeAlias = "tuple[str, str | bytes]"


class _Left(NamedTuple):
    """What a copy has left behind."""

    url: str  #: that it was sent to
    identifiers: list[_Item]  #: the caller's, and the session
    marks: list[_Item]  #: what the gateway had set


if TYPE_CHECKING:
    _Base = dict[str, "str | bytes"]
else:
    _Base = object


class SentHeaders(_Base):
    """What :class:`SentCaseInsensitiveDict` and :class:`SentDict` share.

    ``_url`` is where the identifiers in here were sent to; it is ``None`` in a copy, in which
    what there is has been set since. ``_names`` are theirs in lower case, besides all
    ``X-Cagent-*``; ``_marks`` is what a gateway may have set. ``_request`` is whose they are.
    """

    _plain: Callable[..., Any]
    _url: str | None = None
    _names: frozenset[str] = frozenset()
    _marks: Mapping[str, _Item] = {}
    _left: _Left | None = None
    _request: weakref.ref[PreparedRequest] | None = None

    def copy(self) -> SentHeaders:
        if self._url is None:
            return self._another(self.items(), left=self._left)
        kept: list[_Item] = []
        left = _Left(self._url, [], [])
        for item in self.items():
            key = lower(item[0])
            if self._marks.get(key) == item:
                left.marks.append(item)
            elif is_identifier(key, self._names):
                left.identifiers.append(item)
            else:
                kept.append(item)
        return self._another(kept, left=left)

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> SentHeaders:
        return self._another(self.items(), url=self._url, left=self._left)

    def plain(self) -> Any:
        """The same headers, in a class that has never heard of identifiers."""
        return self._plain(self.items())

    def __reduce__(self) -> Any:
        # A response carries its request, and whoever unpickles it may not have this package.
        return self._plain, (list(self.items()),)

    @property
    def has_identifiers(self) -> bool:
        """Whether there are any that a copy would leave behind."""
        return self._url is not None

    def are_of(self, request: PreparedRequest) -> bool:
        """Whether ``request`` is the very one that its caller has marked, and not a copy."""
        return self._request is not None and self._request() is request

    def of(self, request: PreparedRequest, owner: Owner) -> SentHeaders:
        """The headers for ``request``, which has these: with its identifiers, or without.

        Whoever has marked a request may send it anywhere; a copy has them at their origin only.

        :param owner: who owns its URL. A gateway sets its own marks, and not another's.
        """
        url = request.url or ""
        if self._url is not None:
            stay = self.are_of(request) or urls.same_origin(self._url, url)
            return self if stay else self.copy()
        left = self._left
        is_marked = any(lower(name) == FORWARD.lower() for name in self)
        if left is None or is_marked or not urls.same_origin(left.url, url):
            return self
        marks = left.marks
        if owner is not NOBODY:
            marks = [mark for mark in marks if owner.marks.get(mark[0].lower()) == mark]
        return self._another([*marks, *left.identifiers, *self.items()], url=left.url)

    def sent_again(self, headers: Any) -> SentHeaders:
        """``headers``, which were sent in place of these to where they do not belong."""
        assert self._url is not None
        return sent(headers, self._url, NOBODY, self)

    def _another(
        self, items: Iterable[_Item], url: str | None = None, left: _Left | None = None
    ) -> SentHeaders:
        headers = type(self)(items)
        vars(headers).update(_url=url, _names=self._names, _marks=self._marks, _left=left)
        return headers


class SentCaseInsensitiveDict(SentHeaders, CaseInsensitiveDict):  # type: ignore[misc,type-arg]
    """The usual kind."""

    _plain = CaseInsensitiveDict


class SentDict(SentHeaders, dict):  # type: ignore[type-arg]
    """For a request whose headers somebody has replaced by some other mapping."""

    _plain = dict


_USUAL = {CaseInsensitiveDict, SentCaseInsensitiveDict}


def is_usual(headers: object) -> bool:
    """Whether ``headers`` are of the kind that requests makes."""
    # An abstract base class takes its time to say it of a subclass.
    return type(headers) in _USUAL or isinstance(headers, CaseInsensitiveDict)


def sent(
    headers: Any,
    url: str,
    owner: Owner,
    before: object,
    request: PreparedRequest | None = None,
) -> SentHeaders:
    """``headers``, which were sent to the gateway at ``url``.

    :param owner: who owns ``url``.
    :param before: what the request had before it passed the gate.
    :param request: whose they are, if it is the caller's own and not a copy that we have sent.
    """
    made: SentHeaders
    if is_usual(headers):
        made = SentCaseInsensitiveDict.__new__(SentCaseInsensitiveDict)
        made._store = headers._store  # shared, so it stays one
    else:
        made = SentDict(headers.items())
    made._url = url
    made._names = owner.session_names
    if request is None:
        made._marks = owner.marks
    else:
        made._request = weakref.ref(request)
    if isinstance(before, SentHeaders):
        made._names |= before._names
        made._marks = {**before._marks, **made._marks}
        made._left = before._left
    return made

"""Headers of requests that leave the identifiers behind when they are copied.

A redirect, an authentication handler, a response hook: each makes the next request from a copy of
the last one, and asks nobody. Where that one goes is not ours to guess. So a request that was sent
to a gateway carries headers whose ``copy()`` has no identifiers, and remembers which it had and
where they were sent; they are put back when the copy is sent to the same origin.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict
from urllib3._collections import HTTPHeaderDict

from .._gate import urls
from .._gate.routes import NOBODY, Owner
from ..headers import FORWARD, is_identifier, lower

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
    """What the classes for the several kinds of headers share.

    Until ``were_sent`` is true they are like any other headers.
    """

    _plain: Any
    # Storing into the next four is fast as long as the class has nothing of their names.
    url: str  #: that they are for
    were_sent: bool  #: there, so that a copy leaves the identifiers behind
    owner: Owner  #: of that URL
    request: weakref.ref[PreparedRequest] | None  #: whose they are, if they are the caller's own
    _left: _Left | None = None
    # Of the hops before: which names are identifiers, in lower case, besides all X-Cagent-*, and
    # what gateways may have set.
    _earlier_names: frozenset[str] = frozenset()
    _earlier_marks: Mapping[str, _Item] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url, self.were_sent, self.owner, self.request = "", False, NOBODY, None

    def inherit(self, other: SentHeaders) -> None:
        """Know of earlier hops what ``other`` knows."""
        self._earlier_names |= other._names()
        self._earlier_marks = {**self._earlier_marks, **other._marks()}

    def _names(self) -> frozenset[str]:
        return self.owner.session_names | self._earlier_names

    def _marks(self) -> Mapping[str, _Item]:
        # What the caller has set is the caller's, even if a gateway would have set the same.
        return {**self._earlier_marks, **({} if self.request else self.owner.marks)}

    def copy(self) -> Any:
        if not self.were_sent:
            if self._left is None:
                return self._plain.copy(self)
            return self._another(self.items(), left=self._left)
        kept: list[_Item] = []
        left = _Left(self.url, [], [])
        names, marks = self._names(), self._marks()
        for item in self.items():
            key = lower(item[0])
            if marks.get(key) == item:
                left.marks.append(item)
            elif is_identifier(key, names):
                left.identifiers.append(item)
            else:
                kept.append(item)
        return self._another(kept, left=left)

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> SentHeaders:
        return self._another(self.items(), self.url, self.were_sent, self._left)

    def plain(self) -> Any:
        """The same headers, in a class that has never heard of identifiers."""
        return self._plain(self.items())

    def __reduce__(self) -> Any:
        # A response carries its request, and whoever unpickles it may not have this package.
        return self._plain, (list(self.items()),)

    def are_of(self, request: PreparedRequest) -> bool:
        """Whether ``request`` is the very one that its caller has marked, and not a copy."""
        return self.request is not None and self.request() is request

    def of(self, request: PreparedRequest, owner: Owner) -> SentHeaders:
        """The headers for ``request``, which has these: with its identifiers, or without.

        Whoever has marked a request may send it anywhere; a copy has them at their origin only.

        :param owner: who owns its URL. A gateway sets its own marks, and not another's.
        """
        url = request.url or ""
        if self.were_sent:
            stay = self.are_of(request) or urls.same_origin(self.url, url)
            return self if stay else self.copy()
        left, names = self._left, {lower(name) for name in self}
        if left is None or FORWARD.lower() in names or not urls.same_origin(left.url, url):
            return self
        marks = left.marks
        if owner is not NOBODY:
            marks = [mark for mark in marks if owner.marks.get(mark[0].lower()) == mark]
        back = [item for item in (*marks, *left.identifiers) if lower(item[0]) not in names]
        return self._another([*back, *self.items()], left.url, True)

    def _another(
        self,
        items: Iterable[_Item],
        url: str = "",
        were_sent: bool = False,
        left: _Left | None = None,
    ) -> SentHeaders:
        headers = type(self)(items)
        headers.url, headers.were_sent, headers._left = url, were_sent, left
        headers.inherit(self)
        return headers


class SentCaseInsensitiveDict(SentHeaders, CaseInsensitiveDict):  # type: ignore[type-arg]
    """The usual kind."""

    _plain = CaseInsensitiveDict


class SentDict(SentHeaders, dict):  # type: ignore[type-arg]
    """For a request whose headers somebody has replaced by some other mapping."""

    _plain = dict


class SentHTTPHeaderDict(SentHeaders, HTTPHeaderDict):  # type: ignore[misc]
    """For those of urllib3, which can have several values of one name."""

    _plain = HTTPHeaderDict


#: The kinds that requests makes. What is in their ``_store`` can be shared and copied.
USUAL = frozenset({CaseInsensitiveDict, SentCaseInsensitiveDict})

_new: Any = object.__new__


def with_store(store: dict[str, tuple[Any, Any]], url: str, owner: Owner) -> SentHeaders:
    """Headers of the usual kind that have ``store``, which may be that of others, too."""
    made: SentHeaders = _new(SentCaseInsensitiveDict)
    made._store = store  # type: ignore[attr-defined]
    made.url, made.were_sent, made.owner, made.request = url, False, owner, None
    return made


def sent(headers: Any, url: str, owner: Owner) -> SentHeaders:
    """``headers`` in the class that leaves identifiers behind.

    :param url: that they are for.
    :param owner: who owns ``url``.
    """
    made: SentHeaders
    if isinstance(headers, CaseInsensitiveDict):
        made = with_store(headers._store, url, owner)  # shared, so it stays one
    else:
        kind = SentHTTPHeaderDict if isinstance(headers, HTTPHeaderDict) else SentDict
        made = kind(headers.items())
        made.url, made.owner = url, owner
    if isinstance(headers, SentHeaders):
        made.inherit(headers)
    return made

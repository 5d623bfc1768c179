"""requests: headers that tell the patch of urllib3 that a request is not gateway-bound.

``instrument`` patches both libraries. requests gives urllib3 the URL without user info, and an
adapter for a scheme of its own, ``http+unix``, connects elsewhere than to the URL's host. So
urllib3 alone would take some requests for a gateway's. urllib3 and OpenTelemetry send copies of the
headers, which have to tell it, too.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from requests.structures import CaseInsensitiveDict

from .._gate import urls
from .._gate.routes import FORWARD_KEY, Router, lower
from .guarded_headers import GuardedHeaders
from .homed_headers import read_by_urllib3

# To a type checker the mixin is a mapping, like all classes that it is mixed into.
_Base: Any = dict if TYPE_CHECKING else object


class JudgedHeaders(_Base):  # type: ignore[misc]
    """Mixin for the headers of a request that is being sent, and that is not gateway-bound."""

    router: Router  #: that found no gateway
    url: str  #: that it was asked for

    def copy(self) -> Any:
        return judged(super().copy(), self.router, self.url)

    __copy__ = copy

    def __reduce__(self) -> Any:
        return type(self).__bases__[1], (list(self.items()),)

    def are_for(self, router: Router, url: str) -> bool:
        """Return whether they are the headers of a request that urllib3 sends to ``url``.

        They are not if an ``X-Cagent-Forward`` has been set since: that makes it gateway-bound.

        :param router: of the place that asks. Another one has not judged the request.
        """
        is_same = self.router is router and (
            urls.equivalent(self.url, url)
            or urls.equivalent(read_by_urllib3(self.url), url)
            or not self.url.lower().startswith(("http:", "https:"))
        )
        return is_same and not any(
            value and lower(name) == FORWARD_KEY for name, value in self.items()
        )


def judged(headers: Any, router: Router, url: str) -> JudgedHeaders:
    """Return judged headers that share the table of ``headers``, or copy it from a plain mapping.

    :param headers: of a request; ``None`` if it was prepared by hand, without any.
    """
    made: Any
    if isinstance(headers, JudgedHeaders):
        made = headers
    elif headers is None or isinstance(headers, dict):
        made = _judged_class(dict)(headers or ())
    elif isinstance(headers, GuardedHeaders):
        made = judged(headers.plain(), router, url)
    elif hasattr(headers, "__dict__"):
        # The adapter may set further headers, so both objects share their table.
        plain: Any = type(headers)
        kind = _judged_class(plain)
        made = kind.__new__(kind)
        made.__dict__.update(headers.__dict__)
    else:
        made = _judged_class(CaseInsensitiveDict)(headers.items())
    made.router, made.url = router, url
    return made  # type: ignore[no-any-return]


@functools.cache
def _judged_class(plain: type) -> Any:
    return type(f"Judged{plain.__name__}", (JudgedHeaders, plain), {})

"""The gate under each HTTP library.

A transport does this for each request:

1. Find the ``Route`` of its URL, ``BARE`` for a URL of no gateway.
2. Send it unchanged if a ``Passage`` in its headers covers it: another gate has stamped it.
3. Get the ``Plan`` for the names of its headers from the route, by ``route.plan(library, names)``,
   and find the headers that the plan reads.
4. Make a new ``Passage``, and call ``gate()`` with all of that. If that returns ``None``, send the
   request unchanged.
5. Copy it, put the stamp on the copy's headers and ``route.with_query(url)`` in place of its URL,
   and send the copy by the library's own means. The caller's request stays as it is.
6. Set ``passage.is_open`` to false after sending, even if that failed.
7. Keep identifiers from other origins: ``is_identifier()`` says which headers these are, by the
   ``route.session_keys`` of this hop and earlier ones, and ``may_get_identifiers()`` where they may
   go. Each library makes the next hop of a redirect from the last one in a way of its own; the
   module for the library begins by saying how.
8. Report redirects of gateway-bound requests to ``note_redirect()``.
"""

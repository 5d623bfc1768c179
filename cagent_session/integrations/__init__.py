"""The session in other people's libraries. Each module imports only the library it is for."""


def missing(module: str, extra: str, library: str | None = None) -> str:
    """Return the error message of a module whose library cannot be imported.

    :param library: the name to install, if that is not the name of the extra.
    """
    library = library or extra
    # The library comes first: its line also works where cagent-session is a checkout, and --upgrade
    # also helps where the library is there, but too old.
    return (
        f"cagent_session.integrations.{module} needs {library}: pip install --upgrade {library} "
        f"(or, if cagent-session is from a package index, pip install 'cagent-session[{extra}]')"
    )

"""The session in other people's libraries. Each module imports only the library it is for."""


def missing(module: str, extra: str) -> str:
    """What to say when a module cannot be imported because its library is not installed."""
    return f"cagent_session.integrations.{module} needs: pip install 'cagent-session[{extra}]'"

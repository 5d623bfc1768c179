"""The path of a session through Python code: scopes, decorators, threads and processes."""

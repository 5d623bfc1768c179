"""The commands of ``cagent-session``."""

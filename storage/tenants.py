"""The tenant that a row belongs to: an organization's environment."""

from storage.engine.types import Word


class Environment(Word):
    """Which of an organization's two separate worlds a row belongs to."""

    LIVE = "live"
    SANDBOX = "sandbox"

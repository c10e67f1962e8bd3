"""What compiled code does with what it is not for: it raises, and graphql-core does the same again.

So errors, their paths and how far nulls spread are graphql-core's own, and compiled code needs to know none of it.
"""


class Surprise(Exception):
    """The value is not what the compiled code is for."""


class NotCompilable(Exception):
    """There is a part that only graphql-core can execute."""

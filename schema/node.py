"""Relay's `Node`: an object that can be fetched again by its id."""

from typing import Any, Self

import strawberry


@strawberry.interface(description="An object that can be fetched again by its id.")
class Node:
    """What has an opaque id, unique among all objects."""

    id: strawberry.ID = strawberry.field(description="The object's opaque id, unique among all objects.")

    @classmethod
    def made(cls, **values: Any) -> Self:
        """Return the object whose attributes these are, all of them: its constructor takes three times as long."""
        node = cls.__new__(cls)
        node.__dict__ = values
        return node

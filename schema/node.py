"""Relay's `Node`: an object that can be fetched again by its id."""

import strawberry


@strawberry.interface(description="An object that can be fetched again by its id.")
class Node:
    """What has an opaque id, unique among all objects."""

    id: strawberry.ID = strawberry.field(description="The object's opaque id, unique among all objects.")

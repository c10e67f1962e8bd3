"""The example's keys, so that its proxy runs without a database.

A proxy with a database has virtual keys instead, each with its `user_id`: `config.yaml` then names no `custom_auth`.
"""

from fastapi import HTTPException, Request
from litellm.proxy._types import UserAPIKeyAuth

#: The user of each key, which is the name of the meter that pays.
USERS = {"sk-acme": "acme-robotics"}


async def user_of(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Return the user of a key. Raises `HTTPException`."""
    if api_key not in USERS:
        raise HTTPException(401, "The key is not known.")
    return UserAPIKeyAuth(api_key=api_key, user_id=USERS[api_key])

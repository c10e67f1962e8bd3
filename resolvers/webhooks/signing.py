"""What webhooks are signed with: secrets that are derived from the operator's key when they are needed, and not stored.

So a stolen database signs nothing, and a repeated request answers the secret that the first one did.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from standardwebhooks import Webhook

from resolvers.errors import Forbidden
from storage.webhook_endpoints import WebhookEndpointRow

#: The least number of bytes of the operator's key.
KEY_BYTES = 32

#: How a secret begins, as the specification has it.
_PREFIX = "whsec_"


class BadSecretsKey(Exception):
    """The text or file is no key; the message says what it must be."""


def read_key(text: str) -> bytes:
    """Return the key that is written in base64, either alphabet's. Raises `ValueError`."""
    text = text.strip()
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise ValueError(
            f"must be at least {KEY_BYTES} random bytes in base64, such as `openssl rand -base64 32` writes"
        )
    return key


class SecretsKey:
    """The operator's key: as it is set, or from the file that is made for it beside a database that is one, or none."""

    def __init__(self, key: bytes | None = None, *, file: Path | None = None) -> None:
        self._given = key
        self._file = file

    @cached_property
    def _key(self) -> bytes:
        if self._given is not None:
            return self._given
        if self._file is None:
            raise Forbidden("Webhooks need the setting TOLLGATE_SECRETS_KEY, which the operator has not set.")
        return key_in(self._file)

    def secret_of(self, endpoint_id: str, generation: int) -> str:
        """Return the secret of this number of an endpoint, `whsec_` and base64. Raises `Forbidden` without a key."""
        message = f"webhook endpoint {endpoint_id} {generation}".encode()
        return _PREFIX + base64.b64encode(hmac.digest(self._key, message, hashlib.sha256)).decode()

    def signatures(self, endpoint: WebhookEndpointRow, *, event_id: str, payload: str, now: datetime) -> str:
        """Return the value of `webhook-signature`: by the newest secret, and by the one before while it is kept."""
        generations = [endpoint.secret_generation]
        if endpoint.previous_until is not None and now < endpoint.previous_until:
            generations.append(endpoint.secret_generation - 1)
        signing = [Webhook(self.secret_of(endpoint.id, generation)) for generation in generations]
        return " ".join(each.sign(event_id, now, payload) for each in signing)


def key_in(file: Path) -> bytes:
    """Return the key in the file, which only its owner may read; one that is not there is made, once.

    Raises `BadSecretsKey`, and `OSError`.
    """
    with suppress(FileNotFoundError):
        return _read(file)
    made = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        # Of several processes one makes it; a name that is there already is left as it is.
        with suppress(FileExistsError):
            os.link(made, file)
    finally:
        made.unlink()
    return _read(file)


def _read(file: Path) -> bytes:
    try:
        return read_key(file.read_text("ascii"))
    except ValueError as error:
        raise BadSecretsKey(f"{file} {error}.") from None


def _nothing() -> None:
    """Stand for waking the deliverer where there is none."""


@dataclass
class Webhooks:
    """What of the operator's settings webhooks go by, and how the process's deliverer is woken."""

    secrets: SecretsKey = field(default_factory=SecretsKey)
    allows_private: bool = False
    waking: Callable[[], None] = _nothing
    """What wakes the deliverer of the process, where there is one."""

    def wake(self) -> None:
        """Have new events and what is due looked for at once."""
        self.waking()

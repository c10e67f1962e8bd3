"""Comparisons in constant time, recorded."""

import hmac

import pytest


def recorded_comparisons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, object]]:
    """Return a list to which the two sides of each comparison in constant time are added from now on."""
    compared: list[tuple[object, object]] = []
    compare = hmac.compare_digest

    def record(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", record)
    return compared

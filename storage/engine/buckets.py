"""Buckets: the parts into which a database of several machines is divided.

A meter lies in one of them with everything of it, so that whatever is decided about it is decided on one machine. Which
one, its names say, by twelve bits that are part of its id, too. There is a power of two of buckets, and a meter's
number among them is that of its first bits; the column has for each number a value that the database puts where the
bucket is to lie. Any other database has one bucket, whose value is 0.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import text

#: Whether a PostgreSQL database is divided: the table of its buckets is made with the division.
IS_DIVIDED = text("SELECT to_regclass('buckets') IS NOT NULL")

#: The buckets in the order of their numbers, with the host and port of the server where each lies, as Citus knows it.
DIVISION = text("""SELECT buckets.bucket, node.nodename AS host, node.nodeport AS port
  FROM buckets
  JOIN pg_dist_shard AS shard
    ON shard.shardid = get_shard_id_for_distribution_column('billing_meters', buckets.bucket)
  JOIN pg_dist_placement AS placement ON placement.shardid = shard.shardid
  JOIN pg_dist_node AS node ON node.groupid = placement.groupid AND node.noderole = 'primary'
  ORDER BY buckets.number""")

#: How many bits there are of the names of a meter.
BITS = 12


def bits_of(names: Iterable[str]) -> int:
    """Return the bits of a meter's names: the first of SHA-256 of them, with a NUL, which none has, between them."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:2]) >> (16 - BITS)


#: The host and port of a server.
Place = tuple[str, int]


class Buckets:
    """The values of the column, in the order of the buckets' numbers, and where each bucket lies, if that is known."""

    def __init__(self, values: tuple[int, ...] = (0,), places: Sequence[Place] = ()) -> None:
        self.values = values
        self.is_one = len(values) == 1
        self.places = dict(zip(values, places, strict=False))

    @property
    def by_place(self) -> list[list[int]]:
        """The values of the buckets that lie on the same server, for each server."""
        together = defaultdict(list)
        for value in self.values:
            together[self.places.get(value)].append(value)
        return list(together.values())

    def of_names(self, names: Iterable[str]) -> int:
        """Return the value for a meter of these names."""
        return self.values[0] if self.is_one else self.values[self._number(bits_of(names))]

    def of_bits(self, bits: int | None) -> int | None:
        """Return the value for a meter whose names have these bits; None: it is not known without them."""
        if self.is_one:
            return self.values[0]
        return None if bits is None else self.values[self._number(bits)]

    def _number(self, bits: int) -> int:
        return bits * len(self.values) >> BITS

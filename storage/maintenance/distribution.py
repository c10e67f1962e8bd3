"""Dividing a PostgreSQL database over the machines of Citus: what `tollgate migrate --distribute` does.

What is of meters is copied into tables that are distributed by their bucket, beside the ones that are there, a portion
of the meters at a time; then those take the place of these, in one transaction. Customers, keys and what else there is
once for all are on every machine. Each step finds what an earlier run has done already.

Nobody may write meanwhile: the first step has the database refuse whatever changes a meter, until the last one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex

from storage import ids
from storage.engine.buckets import BITS
from storage.engine.database import Database
from storage.engine.statements import given_columns, is_in_buckets
from storage.meters.billing_meters import MeterName
from storage.tables import TABLES, owner_column

#: Where the tables are that are being filled.
SCHEMA = "tollgate_distributing"

#: How many meters are copied at once, with all that is of them.
METERS_AT_ONCE = 1_000

#: What refuses a gateway that knows nothing of buckets, whose rows would lie where nobody looks for them.
_GUARD = "billing_meters_bucket_check"

_FOREIGN_KEY = "billing_meters_customer_id_fkey"

#: The tables of which each machine has all rows.
_EVERYWHERE = (*[table.name for table in TABLES if not is_in_buckets(table)], "alembic_version")

_DISTRIBUTED = [table for table in TABLES if is_in_buckets(table)]

_NAMES = [f"meter.{name}" for name in MeterName._fields]

#: Is called with the table that is being copied, how many meters are done, and of how many.
OnProgress = Callable[[str, int, int], None]


class CannotDistribute(Exception):
    """The database cannot be divided so; the message says why."""


async def distribute(
    database: Database, count: int, *, on_progress: OnProgress = lambda _table, _done, _of: None
) -> None:
    """Divide the database, which has this release's schema, into so many buckets, a power of two.

    Raises `CannotDistribute`, having changed nothing, and `DatabaseUnavailable`, after which it may be called again.
    """
    if not 1 < count <= 1 << BITS or count & (count - 1):
        raise CannotDistribute(f"the number of buckets must be a power of two, from 2 to {1 << BITS}.")
    if database.dialect != "postgresql":
        raise CannotDistribute("only PostgreSQL can be divided.")
    async with database.connect_to_migrate() as connection:
        await _require_citus(connection)
        if await _scalar(connection, "SELECT to_regclass('public.buckets') IS NOT NULL"):
            found = await _scalar(connection, "SELECT count(*) FROM public.buckets")
            if found == count:
                return
            raise CannotDistribute(f"the database is divided into {found} buckets already.")
    async with database.connect_to_migrate() as connection:
        values = await _begin(connection, count)
    for table in _DISTRIBUTED:
        await _fill(database, table, values, on_progress)
    async with database.connect_to_migrate() as connection:
        await _require_all(connection)
    async with database.connect_to_migrate() as connection:
        await _end(connection, values)


async def complete(database: Database) -> None:
    """Divide the tables, still empty, that a migration has made on a database that is divided. Elsewhere do nothing.

    Raises `DatabaseUnavailable`, after which it may be called again.
    """
    if database.dialect != "postgresql":
        return
    async with database.connect_to_migrate() as connection:
        if not await _scalar(connection, "SELECT to_regclass('public.buckets') IS NOT NULL"):
            return
        rows = await connection.exec_driver_sql("SELECT logicalrelid::text FROM pg_dist_partition")
        known = {name for (name,) in rows}
        if new := [table for table in TABLES if table.name not in known]:
            await _run(connection, "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'", *_divided(new))


def _divided(new: Sequence[Table]) -> Iterator[str]:
    """Return what puts divided tables in the place of new ones."""
    yield f"CREATE SCHEMA {SCHEMA}"
    for table in new:
        if is_in_buckets(table):
            yield f"SET LOCAL search_path TO {SCHEMA}, public"
            yield from _statements_of(table)
            yield f"SELECT create_distributed_table('{table.name}', 'bucket', colocate_with := 'public.billing_meters')"
            yield f"DROP TABLE public.{table.name}"
            yield f"ALTER TABLE {SCHEMA}.{table.name} SET SCHEMA public"
            yield "SET LOCAL search_path TO DEFAULT"
        else:
            yield f"SELECT create_reference_table('public.{table.name}')"
    yield f"DROP SCHEMA {SCHEMA}"


async def _require_citus(connection: AsyncConnection) -> None:
    if await _scalar(connection, "SELECT count(*) FROM pg_extension WHERE extname = 'citus'") == 0:
        raise CannotDistribute("the database has no extension citus: run `CREATE EXTENSION citus` on each machine.")
    nodes = "SELECT count(*) FROM pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards"
    if await _scalar(connection, nodes) == 0:
        raise CannotDistribute("Citus knows no machine that may have shards: see citus_add_node.")


async def _begin(connection: AsyncConnection, count: int) -> list[int]:
    """Make the empty tables, unless they are there, and return the buckets' values, by their numbers."""
    if not await _scalar(connection, f"SELECT to_regnamespace('{SCHEMA}') IS NOT NULL"):
        # Whatever changes a meter is refused from now on.
        await _run(
            connection,
            f"ALTER TABLE public.billing_meters ADD CONSTRAINT {_GUARD} CHECK (bucket > 0) NOT VALID",
            f"ALTER TABLE public.billing_meters DROP CONSTRAINT {_FOREIGN_KEY}",
            f"CREATE SCHEMA {SCHEMA}",
            f"SET LOCAL search_path TO {SCHEMA}, public",
        )
        for table in _DISTRIBUTED:
            await _run(connection, *_statements_of(table))
            shards = f"shard_count := {count}, colocate_with := 'none'"
            if table is not _DISTRIBUTED[0]:
                shards = f"colocate_with := '{_DISTRIBUTED[0].name}'"
            await _run(connection, f"SELECT create_distributed_table('{table.name}', 'bucket', {shards})")
    return await _values(connection, count)


def _statements_of(table: Table) -> list[str]:
    """Return what makes the table as it is, unpartitioned, with the bucket as the last column of its keys."""
    statements = [f"CREATE TABLE {table.name} (LIKE public.{table.name} INCLUDING DEFAULTS)"]
    for key in sorted(table.constraints, key=lambda each: str(each.name)):
        if isinstance(key, PrimaryKeyConstraint | UniqueConstraint):
            kind = "PRIMARY KEY" if isinstance(key, PrimaryKeyConstraint) else "UNIQUE"
            columns = ", ".join([*[column.name for column in key.columns], "bucket"])
            name = key.name if isinstance(key, UniqueConstraint) and key.name else _name_of(table, key)
            statements.append(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} {kind} ({columns})")
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's has no types.
    statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes]
    return statements


def _name_of(table: Table, key: PrimaryKeyConstraint | UniqueConstraint) -> str:
    if isinstance(key, PrimaryKeyConstraint):
        return f"{table.name}_pkey"
    return f"{table.name}_{'_'.join(column.name for column in key.columns)}_key"


async def _values(connection: AsyncConnection, count: int) -> list[int]:
    """Return for each shard, in their order, the least number above 0 that Citus places in it."""
    rows = await connection.exec_driver_sql(
        f"""SELECT min(value) FROM pg_dist_shard JOIN generate_series(1, {64 * count}) AS value
        ON worker_hash(value) BETWEEN shardminvalue::int AND shardmaxvalue::int
        WHERE logicalrelid = '{SCHEMA}.billing_meters'::regclass
        GROUP BY shardminvalue ORDER BY shardminvalue::int"""  # noqa: S608  # Our own names.
    )
    values = [value for (value,) in rows]
    if len(values) != count:
        raise CannotDistribute(f"an earlier run has begun with another number of buckets than {count}.")
    return values


async def _fill(database: Database, table: Table, values: Sequence[int], on_progress: OnProgress) -> None:
    """Copy the rows of the table that an earlier run has not."""
    id_ = owner_column(table).name
    names = ", ".join(column.name for column in given_columns(table))
    selected = ", ".join(f"source.{column.name}" for column in given_columns(table))
    async with database.connect_to_migrate() as connection:
        total = await _scalar(connection, "SELECT count(*) FROM public.billing_meters")
        newest = f"SELECT coalesce(max({id_}), '') FROM {SCHEMA}.{table.name}"  # noqa: S608  # Our own names.
        last = await _scalar(connection, newest)
        done = await _scalar(connection, "SELECT count(*) FROM public.billing_meters WHERE id <= $1", last)
    while True:
        async with database.connect_to_migrate() as connection:
            end = await _scalar(
                connection,
                "SELECT max(id) FROM (SELECT id FROM public.billing_meters WHERE id > $1 ORDER BY id LIMIT $2) AS next",
                *(last, METERS_AT_ONCE),
            )
            if end is None:
                break
            await connection.exec_driver_sql(
                f"""INSERT INTO {SCHEMA}.{table.name} ({names}, bucket) SELECT {selected}, {_bucket(values)}
                FROM public.{table.name} AS source JOIN public.billing_meters AS meter ON meter.id = source.{id_}
                WHERE source.{id_} > $1 AND source.{id_} <= $2""",  # noqa: S608  # Our own names.
                (last, end),
            )
        last, done = end, min(done + METERS_AT_ONCE, total)
        on_progress(table.name, done, total)
    if id_ == "owner_id":
        # Few, and after all that are meters' in the order of the ids.
        async with database.connect_to_migrate() as connection:
            await connection.exec_driver_sql(
                f"""INSERT INTO {SCHEMA}.{table.name} ({names}, bucket)
                SELECT {selected}, {_bucket(values, ["source.owner_id"])} FROM public.{table.name} AS source
                WHERE left(source.owner_id, 4) = '{ids.WEBHOOK_ENDPOINT}' ON CONFLICT DO NOTHING"""  # noqa: S608  # Our own.
            )


def _bucket(values: Sequence[int], names: Sequence[str] = _NAMES) -> str:
    """Return the expression of the bucket of `meter`, or of other names: see `storage.engine.buckets`."""
    joined = r" || '\x00'::bytea || ".join(f"convert_to({name}, 'UTF8')" for name in names)
    digest = f"sha256({joined})"
    bits = f"((get_byte({digest}, 0) << 4) | (get_byte({digest}, 1) >> 4))"
    return f"(ARRAY[{', '.join(map(str, values))}])[(({bits} * {len(values)}) >> {BITS}) + 1]"


async def _require_all(connection: AsyncConnection) -> None:
    """Raise `CannotDistribute` where a row is missing, as one whose meter does not exist."""
    for table in _DISTRIBUTED:
        counts = [
            await _scalar(connection, f"SELECT count(*) FROM {schema}.{table.name}")  # noqa: S608  # Our own names.
            for schema in ("public", SCHEMA)
        ]
        if counts[0] != counts[1]:
            raise CannotDistribute(
                f"of the {counts[0]:,} rows of {table.name} {counts[1]:,} have a meter: see `tollgate verify`."
            )


async def _end(connection: AsyncConnection, values: Sequence[int]) -> None:
    """Put the tables in the place of those that are there."""
    # Citus wants the statements that a foreign key to a table on every machine is checked by one after the other.
    await _run(connection, "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'")
    for table in reversed(_DISTRIBUTED):
        await _run(
            connection,
            f"DROP TABLE public.{table.name}",
            f"ALTER TABLE {SCHEMA}.{table.name} SET SCHEMA public",
        )
    numbered = ", ".join(f"({number}, {value})" for number, value in enumerate(values))
    await _run(
        connection,
        *[f"SELECT create_reference_table('public.{name}')" for name in _EVERYWHERE],
        f"ALTER TABLE public.billing_meters ADD CONSTRAINT {_FOREIGN_KEY} "
        "FOREIGN KEY (customer_id) REFERENCES public.customers (id)",
        f"ALTER TABLE public.billing_meters ADD CONSTRAINT {_GUARD} CHECK (bucket > 0)",
        "CREATE TABLE public.buckets (number smallint PRIMARY KEY, bucket integer NOT NULL)",
        f"INSERT INTO public.buckets VALUES {numbered}",  # noqa: S608  # Numbers.
        "SELECT create_reference_table('public.buckets')",
        f"DROP SCHEMA {SCHEMA}",
    )


async def _run(connection: AsyncConnection, *statements: str) -> None:
    for statement in statements:
        await connection.exec_driver_sql(statement)


async def _scalar(connection: AsyncConnection, statement: str, *values: Any) -> Any:
    return (await connection.exec_driver_sql(statement, values)).scalar_one()

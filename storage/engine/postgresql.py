"""PostgreSQL: what each session is set to, and that a session is the gateway's own."""

from contextlib import suppress
from typing import Any

import asyncpg
from sqlalchemy import URL, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage.engine.clocks import Clocks, ClocksDiffer
from storage.engine.failures import SharedSession

#: How often two connections are compared that come through a pooler.
POOLER_ROUNDS = 5

#: Whether a session of PostgreSQL writes nothing, as on a standby, and whether its role may write.
IS_WRITABLE = text("""SELECT current_setting('transaction_read_only') = 'on' AS is_read_only,
  (SELECT bool_and(has_table_privilege(name, privilege))
   FROM unnest(CAST(:tables AS text[])) AS name, unnest(ARRAY['SELECT', 'INSERT']) AS privilege) AS may_write""")

TIME = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")

#: Ends the sessions of gateways, of this role, that were stopped between the messages of one statement. PostgreSQL
#: takes them for busy, so that its timeout of idle sessions leaves them alone, and it ends no statement that it reads.
STUCK_SESSIONS = text("""SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE application_name = 'tollgate' AND datname = current_database() AND usename = current_user
    AND state = 'active' AND wait_event = 'ClientRead' AND xact_start IS NOT NULL
    AND state_change < clock_timestamp() - make_interval(secs => :seconds)""")

#: Has Citus go to several servers over one connection each: only then may a transaction that has asked all of them
#: change what is on each. Elsewhere it means nothing.
ONE_BY_ONE = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

#: What the gateway relies on for its own sessions, whatever is set for the role, the database or the server.
#: `default_transaction_read_only` is left alone: who sets it wants nothing to be written, and is obeyed.
_SESSION = """SELECT
  set_config('statement_timeout', '{milliseconds}', false),
  set_config('lock_timeout', '{milliseconds}', false),
  set_config('idle_in_transaction_session_timeout', '{milliseconds}', false),
  -- Reads outside of `Writer.begin` must not fail to serialize.
  set_config('default_transaction_isolation', 'read committed', false),
  set_config('default_transaction_deferrable', 'off', false),
  -- At least as durable as the server's disk and its standbys; `remote_apply` is as durable, and makes them current.
  set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
  -- That a COMMIT did not wait for its standby is a warning.
  set_config('client_min_messages', 'warning', false),
  set_config('standard_conforming_strings', 'on', false),
  set_config('transform_null_equals', 'off', false),
  set_config('timezone', 'UTC', false),
  set_config('datestyle', 'ISO', false),
  -- Compiling a plan costs more than any statement here takes.
  set_config('jit', 'off', false),
  pg_backend_pid() AS pid,
  extract(epoch FROM clock_timestamp())::float8 AS time"""


def postgresql_engine(url: URL, clocks: Clocks, *, pool_size: int, wait_seconds: float | None) -> AsyncEngine:
    """Return an engine whose waits are bounded; without `wait_seconds`, a statement may take as long as it needs.

    Whenever it connects, the clocks are compared.
    """
    engine = create_async_engine(
        url,
        # The message of an error would have them, and with them what callers sent.
        hide_parameters=True,
        connect_args={
            "timeout": float(url.query.get("timeout", wait_seconds or 10)),  # type: ignore[arg-type]  # It is there once.
            # The server's own timeouts come first; this one is for a server that no longer answers, and for COMMIT,
            # which the server waits for without a bound.
            "command_timeout": wait_seconds + 5 if wait_seconds is not None else None,
            "server_settings": {"application_name": "tollgate"},
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds or 10,
        pool_pre_ping=True,
        # Every transaction is begun and ended here, by the statements of `Writer`.
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
    )
    milliseconds = int((wait_seconds or 0) * 1000)
    set_up = _SESSION.format(milliseconds=milliseconds)
    _, arguments = engine.dialect.create_connect_args(url)

    async def start(session: asyncpg.Connection) -> None:
        try:
            asked = clocks.now()
            row = await session.fetchrow(set_up)
            with suppress(ClocksDiffer):  # Who only reads may; a write asks again.
                clocks.compare(row["time"], asked=asked)
            if row["pid"] != session.get_server_pid():
                another = await asyncpg.connect(**arguments, timeout=wait_seconds or 10)
                try:
                    await _require_own_sessions(session, another)
                finally:
                    await another.close()
        except BaseException as error:
            session.terminate()  # Nobody else knows of it yet.
            if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
                raise SharedSession from error
            raise

    # Before SQLAlchemy's own questions, which the role's timeouts may be too short for.
    @event.listens_for(engine.sync_engine, "connect", insert=True)
    def set_session(connection: Any, _record: object) -> None:
        connection.run_async(start)

    return engine


async def _require_own_sessions(one: asyncpg.Connection, other: asyncpg.Connection) -> None:
    """Raise `SharedSession` where a pooler gives each transaction any of the server's sessions.

    Behind a pooler, the server's process is another one than the connection names. While both connections are open,
    each has a process of its own, and keeps it, unless the pooler shares them out.
    """
    first = None
    for _ in range(POOLER_ROUNDS):
        processes = [await each.fetchval("SELECT pg_backend_pid()") for each in (one, other)]
        first = first or processes
        if processes != first or processes[0] == processes[1]:
            raise SharedSession

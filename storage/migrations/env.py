"""Alembic's entry: runs the migrations on the connection that `storage.migrations.upgrade` gives it."""

from alembic import context

from storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

"""The database engine: connections, transactions, statements, on SQLite and on PostgreSQL. It knows no table."""

"""Rows: tables, repositories, transactions and migrations. Nothing here knows GraphQL or HTTP."""

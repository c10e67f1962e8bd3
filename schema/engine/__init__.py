"""The GraphQL engine: documents, plans, batched fields, cost. It knows no feature."""

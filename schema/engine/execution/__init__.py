"""How operations are executed: graphql-core's way, and compiled."""

"""The endpoints: GraphQL, REST, and what both have of HTTP."""

"""What fields and mutations decide: permission, rules, use cases. Nothing here knows GraphQL or HTTP."""

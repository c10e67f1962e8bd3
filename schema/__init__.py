"""What clients see: types, inputs, fields, scalars, errors and connections. No SQL and no HTTP."""

"""`tollgate import`: the usage events of a file are recorded as if they had been sent."""

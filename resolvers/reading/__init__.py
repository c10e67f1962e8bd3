"""Reading on an actor's behalf: the loaders of batched fields, and the usage days that a query means."""

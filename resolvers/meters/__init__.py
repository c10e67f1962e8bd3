"""Meters: the rules as pure functions, the commands that change a meter, and the one writer that carries them out.

A command is data with a pure `decide`: see `record_usage.py`, `void_usage.py`, `refill.py` and `settings.py`.
`lanes.py` queues commands. `writer.py` locks their meters, looks up what their keys have done already, decides, writes
and commits, once for all of them. `create.py` makes a meter, and writes its first entry as the writer writes all
others.
"""

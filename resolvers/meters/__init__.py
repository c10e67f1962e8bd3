"""Meters: the commands that change one, the list of them, and the one writer.

A command is data with a pure `decide`: see `record_usage.py`, `void_usage.py`, `refill.py`, `settings.py`, `grants.py`
and `holds.py`. `writing/` queues commands, locks their meters, looks up what their keys have done already, decides,
writes and commits, once for all of them. `create.py` makes a meter, and writes its first entry as the writer writes all
others.
"""

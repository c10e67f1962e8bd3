"""The rules of a meter, as pure functions and data: its limit, the order of use of its credits, what is due, a command.

Only `due.py` reads, so that what is shown is what the next command will write.
"""

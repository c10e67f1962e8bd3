"""The reading of one connection: when it stops, and how fast what is passed over is read of all of them."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

#: How much of what was answered already is read in a second, of all connections together, so that it delays no request.
IN_VAIN_BYTES_PER_SECOND = 128 * 1024 * 1024

#: By how much more than that may be read before the reading stops.
_AHEAD_SECONDS = 0.01


class Flow(FlowControl):
    """The reading of one connection, which stops while bytes are not parsed yet, or too much has come."""

    is_held = False
    is_paced = False

    #: Until when, by the loop's clock, what all connections have passed over keeps to its rate.
    paced_until = 0.0

    def resume_reading(self) -> None:
        """Read on, unless bytes are held or it is not time yet."""
        if not (self.is_held or self.is_paced):
            super().resume_reading()

    def pace(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        """Read on when so many more bytes may be passed over, of all connections together."""
        now = loop.time()
        Flow.paced_until = max(self.paced_until, now) + size / IN_VAIN_BYTES_PER_SECOND
        if self.paced_until - now > _AHEAD_SECONDS and not (self.is_paced or self._transport.is_closing()):
            self.is_paced = True
            self.pause_reading()
            loop.call_at(self.paced_until, self._end_pace)

    def _end_pace(self) -> None:
        self.is_paced = False
        if not self._transport.is_closing():
            self.resume_reading()

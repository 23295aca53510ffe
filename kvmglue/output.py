"""A part of what a guest has sent, and its place in all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from uffdtrack.errors import InvalidInputError

Positions = tuple[int, int]
"""How much the guest has sent since it began: bytes on the serial port, packets."""


@dataclass(frozen=True, slots=True)
class Output:
    """A part of what a guest has sent.

    Attributes:
        serial_at, packet_at: how many bytes and packets came before it.
        serial: what was printed.
        packets: each of 1 to 1514 bytes.
    """

    serial_at: int = 0
    serial: bytes = b""
    packet_at: int = 0
    packets: list[bytes] = field(default_factory=list)

    @property
    def start(self) -> Positions:
        return self.serial_at, self.packet_at

    @property
    def end(self) -> Positions:
        return self.serial_at + len(self.serial), self.packet_at + len(self.packets)

    def then(self, later: Output) -> Output:
        """Both as one.

        Raises:
            InvalidInputError: there is a gap between them.
        """
        if later.start != self.end:
            raise InvalidInputError(f"the output up to {self.end} is not followed by that from {later.start}")
        return Output(
            self.serial_at, self.serial + later.serial, self.packet_at, self.packets + later.packets
        )

    def since(self, at: Positions) -> Output:
        """What of it comes after these positions.

        Raises:
            InvalidInputError: they are not within it.
        """
        if not all_before(self.start, at) or not all_before(at, self.end):
            raise InvalidInputError(f"the output from {self.start} to {self.end} has no place {at}")
        return Output(
            at[0], self.serial[at[0] - self.serial_at :], at[1], self.packets[at[1] - self.packet_at :]
        )


def all_before(one: Positions, other: Positions) -> bool:
    return one[0] <= other[0] and one[1] <= other[1]


def earlier(one: Positions, other: Positions) -> Positions:
    return min(one[0], other[0]), min(one[1], other[1])


def later(one: Positions, other: Positions) -> Positions:
    return max(one[0], other[0]), max(one[1], other[1])

"""NATS's protocol as a relay reads it, and what messages of ours are in it: the events of a failure matrix.

Of what a client sends, an event is named by what it is for ("part", "end", "up ACK"); the answer to a request
has its name and " answered"; a message that a server delivers has its name and " delivered".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BufferedReader

from checkpoint.replication.broker.lease import Record, State
from checkpoint.replication.broker.stream import BATCH, LEASE
from checkpoint.replication.links.frames import HEADER, Kind

_WITH_PAYLOAD = {b"PUB", b"HPUB", b"MSG", b"HMSG"}
_KINDS = {kind.value: kind.name for kind in Kind}
_API = {"CREATE": "create", "MSG": "look"}


@dataclass(frozen=True)
class Op:
    """An operation of the protocol.

    Attributes:
        subject, reply: of a message, or "".
        head, body: of its payload.
    """

    raw: bytes
    verb: bytes
    subject: str = ""
    reply: str = ""
    head: bytes = b""
    body: bytes = b""


def read(source: BufferedReader) -> Op | None:
    """The next one; None: the sender has ended."""
    line = source.readline()
    words = line.split()
    if not line.endswith(b"\n") or not words:
        return None
    verb = words[0].upper()
    if verb not in _WITH_PAYLOAD:
        return Op(line, verb)
    size = int(words[-1])
    payload = source.read(size + 2)
    if len(payload) < size + 2:
        return None
    names = [word.decode() for word in words[1 : -2 if verb[:1] == b"H" else -1]]
    if verb.endswith(b"MSG"):
        del names[1]  # the number of the subscription
    of_head = int(words[-2]) if verb[:1] == b"H" else 0
    reply = names[1] if len(names) > 1 else ""
    return Op(line + payload, verb, names[0], reply, payload[:of_head], payload[of_head:-2])


def headers(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def last_kind(body: bytes) -> str:
    """Of the frames in it, the kind of the last one."""
    at, kind = 0, ""
    while at + HEADER.size <= len(body):
        _, number, of_meta, of_body, _ = HEADER.unpack_from(body, at)
        kind = _KINDS.get(number, "")
        at += HEADER.size + of_meta + of_body
    return kind


def meta_of(body: bytes) -> dict[str, object]:
    """Of the frame that is all of it."""
    of_meta = HEADER.unpack_from(body)[2]
    found: dict[str, object] = json.loads(body[HEADER.size : HEADER.size + of_meta])
    return found


class Events:
    """What passes under one name.

    Attributes:
        standbys: ids of those that have asked to be linked, in the order in which they did first.
        records: those of the lease that were sent to be stored, whether they were or not.
        acknowledged: digests of epochs.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.standbys: list[str] = []
        self.records: list[Record] = []
        self.acknowledged: list[str] = []
        self._successor = ""
        self._asked: dict[str, str] = {}

    def of(self, op: Op) -> str:
        """The event's name; "": it is of no interest."""
        if op.verb.endswith(b"MSG"):
            if op.subject in self._asked:
                return f"{self._asked.pop(op.subject)} answered"
            name = self._named(op)
            return f"{name} delivered" if name else ""
        name = self._named(op)
        if name and op.reply:
            self._asked[op.reply] = name
        return name

    def _named(self, op: Op) -> str:
        subject = op.subject
        if subject.startswith("$JS.API."):
            words = subject.split(".")
            stream = words[-1]
            if stream not in (f"uffdtrack-{self.name}", f"uffdtrack-{self.name}-parts"):
                return ""
            if words[2] == "DIRECT":
                return "fetch part" if stream.endswith("-parts") else "fetch record"
            return _API.get(words[3], "")
        if subject == f"uffdtrack.{self.name}.record":
            record = Record.parse(headers(op.head)[LEASE])
            self.records.append(record)
            name = self._of_record(record, op)
            self._successor = record.successor
            return name
        if subject == f"uffdtrack.{self.name}.part":
            return "part"
        live = f"uffdtrack-live.{self.name}."
        if subject.startswith(live):
            return self._live(subject.removeprefix(live), op)
        return ""

    def _of_record(self, record: Record, op: Op) -> str:
        if record.state is State.RESIGNED and BATCH.encode() not in op.head:
            return "resign"
        if record.state is State.ENDED:
            return "bye"
        if BATCH.encode() in op.head:
            parts = json.loads(headers(op.head)[BATCH])[1]
            return "end" if parts else last_kind(op.body).lower()
        if record.state is State.SEEKING:
            return "seek"
        if record.serial == 1:
            return "claim" if record.number == 1 else "claim by standby"
        return "renew" if record.successor == self._successor else "name"

    def _live(self, what: str, op: Op) -> str:
        if what == "link":
            standby = str(json.loads(op.body)["standby"])
            if standby not in self.standbys:
                self.standbys.append(standby)
            return "link"
        if what == "records":
            return "record"
        if not what.startswith("up."):
            return what.partition(".")[0]
        kind = last_kind(op.body)
        if kind == "ACK" and op.verb == b"PUB":
            self.acknowledged.append(str(meta_of(op.body)["digest"]))
        return f"up {kind}"

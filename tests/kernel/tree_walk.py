"""A session of a tree that goes on from earlier epochs, and what its processes had at each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from checkpoint.rollback.request import Request, fingerprint_of_all
from checkpoint.rollback.tree import TreeOutcome
from checkpoint.rollback.tree_in_session import TreeSessionRollback
from checkpoint.tree import Tree, TreeWriter
from checkpoint.tree_session import TreeSession
from tests.kernel.forks import is_dead
from tests.kernel.rolled import held
from tests.kernel.truth import Truth
from uffdtrack import children


def family(pid: int) -> list[int]:
    """A process and its descendants that have not ended."""
    return [pid, *(below for child in children(pid) if not is_dead(child) for below in family(child))]


class Walk:
    """A session of a tree, and what the memory of its processes was at each epoch."""

    def __init__(
        self, stack: ExitStack, pid: int, directory: Path, engine: str, follow_shared: bool = False
    ) -> None:
        self.pid = pid
        self.directory = directory
        writer = stack.enter_context(TreeWriter(directory, b"", force=False))
        session = TreeSession(pid, writer, engine, None, follow_shared=follow_shared)
        self.session = stack.enter_context(session)
        self.rollback = TreeSessionRollback(self.session, directory)
        self.truths: list[dict[int, Truth]] = []
        self.parents: list[int] = []

    @contextmanager
    def held(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            pids = family(self.pid)
            for pid in pids:
                stack.enter_context(held(pid))
            yield pids

    def take(self) -> int:
        with self.held() as pids:
            number = self.session.take().epoch
            self.truths.append({pid: Truth.of(pid) for pid in pids})
        assert number == len(self.truths) - 1
        self.parents.append(Tree(self.directory).open(number).parent_epoch)
        return number

    def back_to(self, epoch: int, anyway: bool = False) -> TreeOutcome:
        """Raises: AssertionError: a page is not what it was then."""
        entry = Tree(self.directory).open(epoch)
        files = fingerprint_of_all(entry.views())
        with self.held():
            request = Request(self.pid, epoch, entry.digest, files, anyway, 5.0)
            outcome: TreeOutcome = self.rollback(request, lambda: None)
            unlike = {pid: then.unlike(Truth.of(pid)) for pid, then in self.truths[epoch].items()}
        wrong = {pid: pages for pid, pages in unlike.items() if pages}
        assert not wrong, f"epoch {epoch}: {wrong}"
        return outcome

    def wrong(self) -> dict[tuple[int, int], list[str]]:
        """By epoch and process: pages that are not what they were."""
        entries, _ = Tree(self.directory).verify(b"")
        found = {}
        for entry, truths in zip(entries, self.truths, strict=True):
            assert {process.pid for process in entry.processes} == truths.keys()
            for process in entry.processes:
                found[entry.epoch, process.pid] = truths[process.pid].wrong(entry.view(process))
        return {where: pages for where, pages in found.items() if pages}

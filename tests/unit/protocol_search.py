"""Goes through all worlds that can come of a setup, the nearest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.unit.protocol_moves import moves
from tests.unit.protocol_world import Setup, ViolationError, World

Question = Callable[[World], tuple[bool, bool]]
"""Whether a state has to be able to come to a goal, and whether it is one."""


@dataclass
class Found:
    """What a search has found.

    Attributes:
        broken: the invariant that does not hold; trace: the shortest way there.
        stuck: for each question a way to a state from which no goal can be reached.
        asked: for each question, how many states have had to come to a goal.
    """

    states: int = 0
    steps: int = 0
    broken: str = ""
    trace: list[str] = field(default_factory=list)
    stuck: dict[str, list[str]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)


class Search:
    def __init__(self, setup: Setup, questions: dict[str, Question]) -> None:
        self.questions = questions
        self.found = Found()
        self.numbers: dict[object, int] = {}
        self.ways: list[tuple[int, str]] = []
        self.before: list[list[int]] = []
        self.asks: dict[str, list[int]] = {name: [] for name in questions}
        self.goals: dict[str, list[int]] = {name: [] for name in questions}
        self.waiting: deque[tuple[int, World]] = deque()
        self._note(World(setup), -1, "")

    def run(self) -> Found:
        while self.waiting and not self.found.broken:
            number, world = self.waiting.popleft()
            for label, move in moves(world):
                following = world.apart()
                self.found.steps += 1
                try:
                    move(following)
                    following.invariants()
                except ViolationError as error:
                    self.found.broken, self.found.trace = str(error), [*self._way(number), label]
                    break
                self._note(following, number, label)
        self.found.states = len(self.numbers)
        if not self.found.broken:
            self._answer()
        return self.found

    def _note(self, world: World, before: int, label: str) -> None:
        if not world.active_open:
            world.up = ()
        if not world.standby_open:
            world.down = ()
        world.cut = world.cut and (world.active_open or world.standby_open)
        key = world.key()
        number = self.numbers.setdefault(key, len(self.numbers))
        if number == len(self.ways):
            self.ways.append((before, label))
            self.before.append([])
            self.waiting.append((number, world))
            for name, question in self.questions.items():
                asks, goal = question(world)
                if asks:
                    self.asks[name].append(number)
                if goal:
                    self.goals[name].append(number)
        if before >= 0:
            self.before[number].append(before)

    def _answer(self) -> None:
        for name in self.questions:
            can = set(self.goals[name])
            rest = deque(can)
            while rest:
                for number in self.before[rest.popleft()]:
                    if number not in can:
                        can.add(number)
                        rest.append(number)
            self.found.asked[name] = len(self.asks[name])
            for number in self.asks[name]:
                if number not in can:
                    self.found.stuck[name] = self._way(number)
                    break

    def _way(self, number: int) -> list[str]:
        labels = []
        while number > 0:
            number, label = self.ways[number]
            labels.append(label)
        return labels[::-1]

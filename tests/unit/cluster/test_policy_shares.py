"""Sources that feed one queue take turns by rows."""

from collections import Counter
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.batch import BatchPolicy, Waiting, in_turn
from cluster.policy.shares import KEPT_TURNS, Shares

POLICY = BatchPolicy(max_rows=8)


class Queue:
    """An engine's queue without an engine: what is decided is computed at once."""

    def __init__(self, policy: BatchPolicy = POLICY) -> None:
        self.policy = policy
        self.shares = Shares()
        self.units: dict[int, Waiting] = {}
        self.had: Counter[int] = Counter()
        self.urgent_run = 0
        self._ids = count(1)

    def add(self, source: int, rows: int = 1, priority: int = 0, group: str = "", deadline_s: float = 1e9) -> int:
        unit = Waiting(next(self._ids), rows, 0.0, deadline_s, priority, group, source)
        self.units[unit.id] = unit
        return unit.id

    def run(self) -> list[Waiting]:
        """The next batch, which is taken."""
        decision = self.policy.decide(self.units.values(), 0.0, self.urgent_run, self.shares)
        for expired in decision.expire:
            del self.units[expired]
        batch = [self.units.pop(unit_id) for unit_id in decision.run]
        if batch:
            others = any(unit.priority > batch[0].priority for unit in self.units.values())
            self.urgent_run = self.urgent_run + 1 if others else 0
            self.shares.ran(batch[0].priority, [(unit.source, unit.rows) for unit in batch])
        self.had.update({unit.source: 0 for unit in batch})
        for unit in batch:
            self.had[unit.source] += unit.rows
        return batch


def test_a_source_with_a_deep_queue_does_not_make_another_wait_for_all_of_it():
    queue = Queue()
    for _ in range(20):
        queue.add(1, rows=8)
    late = queue.add(2, rows=8)
    taken = [queue.run()[0].id for _ in range(3)]
    assert late in taken[:2]


def test_sources_that_always_wait_get_equal_rows_whatever_the_size_of_their_units():
    queue = Queue()
    for _ in range(200):
        queue.add(1, rows=7)
        for _ in range(7):
            queue.add(2, rows=1)
    for _ in range(60):
        queue.run()
    assert abs(queue.had[1] - queue.had[2]) <= 2 * POLICY.max_rows
    assert queue.had[1] + queue.had[2] > 300


def test_a_source_that_was_away_has_saved_up_nothing():
    queue = Queue()
    for _ in range(50):
        queue.add(1, rows=8)
    for _ in range(20):
        queue.run()
    for _ in range(30):
        queue.add(2, rows=8)
    sources = [queue.run()[0].source for _ in range(10)]
    assert 4 <= sources.count(2) <= 6


def test_what_expires_is_not_charged_to_its_source():
    queue = Queue()
    for _ in range(50):
        queue.add(1, rows=8, deadline_s=-1.0)
    queue.add(1, rows=8)
    for _ in range(4):
        queue.add(2, rows=8)
    sources = [queue.run()[0].source for _ in range(2)]
    assert sorted(sources) == [1, 2]


def test_classes_keep_turns_of_their_own():
    queue = Queue()
    for _ in range(10):
        queue.add(1, rows=8, priority=1)
        queue.run()
    first = queue.add(1, rows=8)
    queue.add(2, rows=8)
    assert [unit.id for unit in queue.run()] == [first]


def test_a_batch_is_filled_with_rows_of_both_sources():
    queue = Queue()
    for _ in range(8):
        queue.add(1)
    for _ in range(8):
        queue.add(2)
    assert Counter(unit.source for unit in queue.run()) == {1: 4, 2: 4}


def test_sources_that_have_gone_are_forgotten():
    shares = Shares()
    for source in range(10 * KEPT_TURNS):
        shares.ran(0, [(source, 3)])
        assert len(shares._turns[0]) <= KEPT_TURNS
    assert shares.turn(0, -1) <= shares.turn(0, 10 * KEPT_TURNS - 1)


def test_one_source_is_first_in_first_out():
    units = [Waiting(i, 1, 0.0, source=4) for i in range(5)]
    assert in_turn(units, Shares()) is units


def test_rows_ahead_of_a_new_unit_are_those_whose_turn_comes_first():
    queue = Queue()
    for _ in range(10):
        queue.add(1, rows=8)
    queue.add(3, rows=2, priority=1)
    units = list(queue.units.values())
    assert POLICY.rows_ahead(units, 0, source=1) == 80
    assert POLICY.rows_ahead(units, 0, source=2) == 8  # one unit of the other source came before
    assert POLICY.rows_ahead(units, 1, source=2) == 82  # and a less urgent unit waits for everything
    assert POLICY.rows_ahead([], 0, source=1) == 0


arrivals = st.lists(
    st.one_of(
        st.none(),  # run a batch
        st.tuples(st.integers(0, 3), st.integers(1, 10), st.integers(0, 1), st.sampled_from("ab")),
    ),
    max_size=80,
)


@given(arrivals)
def test_whatever_arrives_runs_once_in_order_and_in_bounded_batches_of_one_class(events):
    queue = Queue()
    ran: list[Waiting] = []
    added: list[int] = []

    def run() -> None:
        waited = list(queue.units.values())
        batch = queue.run()
        assert bool(batch) == bool(waited)
        if not batch:
            return
        assert sum(unit.rows for unit in batch) <= POLICY.max_rows or len(batch) == 1
        assert len({(unit.priority, unit.group) for unit in batch}) == 1
        if batch[0].priority == 1 and any(unit.priority == 0 for unit in waited):
            assert sum(unit.priority == 0 for unit in ran) >= POLICY.class_turn  # it was their turn
        ran.extend(batch)

    for event in events:
        if event is None:
            run()
        else:
            added.append(queue.add(*event))
    while queue.units:
        run()
    assert sorted(unit.id for unit in ran) == added
    for lane in {(unit.source, unit.priority, unit.group) for unit in ran}:
        ids = [unit.id for unit in ran if (unit.source, unit.priority, unit.group) == lane]
        assert ids == sorted(ids)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.integers(1, 8),
    st.integers(0, 30),
)
def test_no_source_starves(sizes, own_rows, before):
    """A unit that arrives while others always have more work runs before any of them had much more than its share."""
    queue = Queue()

    def refill() -> None:
        for source, rows in enumerate(sizes, 1):
            while sum(unit.source == source for unit in queue.units.values()) < 8:
                queue.add(source, rows)

    for _ in range(before):
        refill()
        queue.run()
    refill()
    own = queue.add(0, own_rows)
    rows = 0
    while own in queue.units:
        refill()
        rows += sum(unit.rows for unit in queue.run() if unit.source)
        assert rows <= 3 * POLICY.max_rows * len(sizes)

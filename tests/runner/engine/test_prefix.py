"""The radix tree: by example, and held against a plain list of cells per holder by random histories."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runner.engine.prefix import NO_MATCH, Match, Namespace, PrefixTree, common_length

HERE = Namespace()
THERE = Namespace(owner="other")


@pytest.fixture
def tree() -> PrefixTree:
    tree = PrefixTree()
    tree.add(0, HERE)
    tree.extend(0, [1, 2, 3, 4])
    return tree


def test_a_prompt_matches_as_far_as_its_tokens_agree(tree: PrefixTree) -> None:
    assert tree.longest_match([1, 2, 9], HERE) == Match(2, frozenset({0}))
    assert tree.longest_match([1, 2, 3, 4, 5], HERE) == Match(4, frozenset({0}))
    assert tree.longest_match([9], HERE) == NO_MATCH
    assert tree.longest_match((1, 2), HERE).count == 2


def test_another_namespace_sees_nothing(tree: PrefixTree) -> None:
    assert tree.longest_match([1, 2, 3, 4], THERE) == NO_MATCH
    tree.add(1, THERE)
    with pytest.raises(KeyError):
        tree.attach(1, 0, 2)
    tree.extend(1, [1, 2])
    assert tree.longest_match([1, 2, 3], THERE) == Match(2, frozenset({1}))


def test_shared_cells_count_once_and_stay_until_the_last_holder_leaves(tree: PrefixTree) -> None:
    tree.add(1, HERE)
    tree.attach(1, 0, 3)
    tree.extend(1, [7, 8])
    assert tree.n_cells == 6
    assert tree.tokens(1) == [1, 2, 3, 7, 8]
    assert (tree.count_own(0), tree.count_own(1)) == (1, 2)
    assert tree.longest_match([1, 2, 3, 9], HERE) == Match(3, frozenset({0, 1}))
    tree.remove(0)
    assert tree.n_cells == 5
    assert tree.longest_match([1, 2, 3, 4], HERE) == Match(3, frozenset({1}))
    tree.remove(1)
    assert tree.n_cells == 0


def test_equal_tokens_computed_twice_are_cells_twice(tree: PrefixTree) -> None:
    tree.add(1, HERE)
    tree.extend(1, [1, 2, 3, 4, 5])
    assert tree.n_cells == 9
    assert tree.longest_match([1, 2, 3, 4, 5], HERE) == Match(5, frozenset({1}))


def test_of_equal_matches_the_most_shared_is_taken(tree: PrefixTree) -> None:
    tree.add(1, HERE)
    tree.extend(1, [1, 2, 5])
    tree.add(2, HERE)
    tree.attach(2, 1, 2)
    assert tree.longest_match([1, 2], HERE) == Match(2, frozenset({1, 2}))


def test_what_several_hold_is_counted_once(tree: PrefixTree) -> None:
    for holder in (1, 2):
        tree.add(holder, HERE)
        tree.attach(holder, 0, 2)
        tree.extend(holder, [holder + 10])
    assert tree.count_held([1, 2]) == 4
    assert tree.count_held([0]) == 4
    assert tree.count_held([]) == 0
    assert tree.count_shared(0, 3, [1]) == 2
    assert tree.count_shared(0, 1, [1]) == 1
    assert tree.count_shared(0, 4, []) == 0


def test_a_holder_is_added_once_and_attaches_before_it_has_anything(tree: PrefixTree) -> None:
    with pytest.raises(KeyError):
        tree.add(0, HERE)
    tree.add(1, HERE)
    for count in (-1, 5):
        with pytest.raises(ValueError, match=str(count)):
            tree.attach(1, 0, count)
    tree.extend(1, [])
    tree.extend(1, [5])
    with pytest.raises(KeyError):
        tree.attach(1, 0, 2)
    assert repr(tree) == "<PrefixTree: 2 holders, 5 cells>"


def test_a_path_that_many_have_shared_is_in_one_piece_again(tree: PrefixTree) -> None:
    for holder, count in ((1, 1), (2, 3), (3, 2)):
        tree.add(holder, HERE)
        tree.attach(holder, 0, count)
    for holder in (1, 2, 3):
        tree.remove(holder)
    assert tree.count_own(0) == 4


def test_common_length_by_hand() -> None:
    assert common_length([], [1]) == 0
    assert common_length([1, 2], [1, 2, 3]) == 2
    for length, wrong in itertools.product(range(1, 9), range(8)):
        changed = [*range(length)]
        if wrong < length:
            changed[wrong] = -1
        assert common_length([*range(length)], changed) == min(wrong, length)


tokens = st.lists(st.integers(0, 2), max_size=6)
namespaces = st.sampled_from([HERE, THERE])


class TreeMachine(RuleBasedStateMachine):
    """Beside the tree: of every holder its cells, as pairs of a token and a number that no other cell has."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.cells: dict[int, list[tuple[int, int]]] = {}
        self.namespaces: dict[int, Namespace] = {}
        self.holders = itertools.count()
        self.numbers = itertools.count()

    def some_holder(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.cells)))

    @rule(namespace=namespaces)
    def add(self, namespace: Namespace) -> None:
        holder = next(self.holders)
        self.tree.add(holder, namespace)
        self.cells[holder] = []
        self.namespaces[holder] = namespace

    @precondition(lambda self: self.cells)
    @rule(data=st.data(), tokens=tokens)
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        holder = self.some_holder(data)
        self.tree.extend(holder, tokens)
        self.cells[holder] += [(token, next(self.numbers)) for token in tokens]

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        source = self.some_holder(data)
        count = data.draw(st.integers(0, len(self.cells[source])))
        self.add(self.namespaces[source])
        holder = max(self.cells)
        self.tree.attach(holder, source, count)
        self.cells[holder] = self.cells[source][:count]

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        holder = self.some_holder(data)
        count = data.draw(st.integers(0, len(self.cells[holder]) + 1))
        self.tree.cut(holder, count)
        del self.cells[holder][count:]

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        holder = self.some_holder(data)
        self.tree.remove(holder)
        del self.cells[holder], self.namespaces[holder]

    @rule(tokens=tokens, namespace=namespaces)
    def match(self, tokens: list[int], namespace: Namespace) -> None:
        counts = {
            holder: common_length([token for token, _ in cells], tokens)
            for holder, cells in self.cells.items()
            if self.namespaces[holder] == namespace
        }
        found = self.tree.longest_match(tokens, namespace)
        assert found.count == max(counts.values(), default=0)
        assert bool(found.holders) == (found.count > 0)
        assert all(counts[holder] == found.count for holder in found.holders)

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def count(self, data: st.DataObject) -> None:
        some = data.draw(st.sets(st.sampled_from(sorted(self.cells))))
        source = self.some_holder(data)
        count = data.draw(st.integers(0, len(self.cells[source])))
        held = {cell for holder in some for cell in self.cells[holder]}
        assert self.tree.count_held(some) == len(held)
        assert self.tree.count_shared(source, count, some) == len(held & set(self.cells[source][:count]))
        others = {cell for holder, cells in self.cells.items() if holder != source for cell in cells}
        assert self.tree.count_own(source) == len(set(self.cells[source]) - others)

    @invariant()
    def same_as_the_lists(self) -> None:
        assert self.tree.n_cells == len({cell for cells in self.cells.values() for cell in cells})
        for holder, cells in self.cells.items():
            assert holder in self.tree
            assert self.tree.tokens(holder) == [token for token, _ in cells]
            assert self.tree.length(holder) == len(cells)

    @invariant()
    def no_more_edges_than_needed(self) -> None:
        """A path is only divided where somebody joins or leaves it: fewer edges than twice the holders."""
        assert len(list(self.tree._edges())) <= max(0, 2 * len(self.cells) - 1)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

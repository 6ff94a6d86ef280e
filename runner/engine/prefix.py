"""The radix tree over the cells of a pool: which sequences hold them, and how much of a prompt is there.

    root ── "You are a …" ──┬── "What is …" ── (id 3)        every edge is a run of cells,
            {3, 5, 9}       └── "Tell me …" ─┬─ (id 5)       with the ids that share it
                                             └─ (id 9)

An edge is **cells**, not only tokens: two sequences that computed equal tokens each for itself have an edge
each, side by side. So the lengths of all edges add up to the cells in use. A namespace has a root of its own,
so that what one may not see of another is not even compared.

Pure. Imports the standard library only. Used by `cells.py`, which does the same to real cells.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence

import attrs


@attrs.frozen(kw_only=True)
class Namespace:
    """What must agree before one sequence may use the cells of another.

    `adapters` change what the weights compute, `media` what the tokens stand for, and `owner` tells whose
    prompts must not be measured by others' response times. Empty is what all have in common.
    """

    adapters: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    owner: str = ""


@attrs.frozen
class Match:
    """The first `count` tokens of a prompt are in cells that each of `holders` has, none when it is 0."""

    count: int
    holders: frozenset[int] = frozenset()


NO_MATCH = Match(0)


class _Edge:
    """A run of cells: `tokens` from position `start` on, held by `holders`."""

    __slots__ = ("children", "holders", "parent", "start", "tokens")

    def __init__(self, parent: _Edge | None, start: int, tokens: list[int], holders: set[int]) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.holders = holders
        self.children: list[_Edge] = []

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class PrefixTree:
    """Every holder, an id, has one path from a root; cells are where paths run together only once."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Edge] = {}
        self._tips: dict[int, _Edge] = {}
        """Of each holder: the last edge of its path, or its root."""
        self._n_cells = 0

    def __repr__(self) -> str:
        return f"<PrefixTree: {len(self._tips)} holders, {self._n_cells} cells>"

    def __contains__(self, holder: int) -> bool:
        return holder in self._tips

    @property
    def n_cells(self) -> int:
        """In use by any holder, each counted once."""
        return self._n_cells

    def length(self, holder: int) -> int:
        """Tokens of its path."""
        return self._tips[holder].end

    def tokens(self, holder: int) -> list[int]:
        """Its path; a copy."""
        found: list[int] = []
        for edge in reversed(list(self._path(holder))):
            found += edge.tokens
        return found

    # growing

    def add(self, holder: int, namespace: Hashable) -> None:
        """A new holder, of nothing yet. KeyError when it is one already."""
        if holder in self._tips:
            raise KeyError(holder)
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = _Edge(None, 0, [], set())
        root.holders.add(holder)
        self._tips[holder] = root

    def extend(self, holder: int, tokens: Sequence[int]) -> None:
        """Cells of its own, after what it has."""
        if not tokens:
            return
        tip = self._tips[holder]
        self._n_cells += len(tokens)
        if tip.parent is not None and len(tip.holders) == 1:
            tip.tokens += tokens
            return
        edge = _Edge(tip, tip.end, list(tokens), {holder})
        tip.children.append(edge)
        self._tips[holder] = edge

    def attach(self, holder: int, source: int, count: int) -> None:
        """Let `holder`, which is empty, share the first `count` cells of `source` in its namespace."""
        if self._tips[holder].parent is not None or self._root(source) is not self._tips[holder]:
            raise KeyError(holder)
        if not 0 <= count <= self.length(source):
            raise ValueError(count)
        for edge in list(self._path(source)):
            if edge.start >= count:
                continue
            if edge.end > count:
                self._split(edge, count)
            if edge.end == count:
                self._tips[holder] = edge
            edge.holders.add(holder)

    # shrinking

    def cut(self, holder: int, count: int) -> None:
        """Let it keep only its first `count` cells. What nobody holds any more is free."""
        path = list(self._path(holder))
        tip = self._root(holder)
        for edge in path:
            if edge.start >= count:
                self._leave(edge, holder)
            elif edge.end > count and len(edge.holders) == 1:
                self._n_cells -= edge.end - count
                del edge.tokens[count - edge.start :]
            elif edge.end > count:
                rest = self._split(edge, count)
                self._leave(rest, holder)
            if edge.start < count and tip.parent is None:
                tip = edge  # the path comes tip first
        self._tips[holder] = tip
        self._join_up(tip)

    def remove(self, holder: int) -> None:
        self.cut(holder, 0)
        root = self._tips.pop(holder)
        root.holders.remove(holder)
        if not root.holders:
            self._roots = {name: edge for name, edge in self._roots.items() if edge is not root}

    # asking

    def longest_match(self, tokens: Sequence[int], namespace: Hashable) -> Match:
        """Of all paths the one that has most of `tokens` from the first on; of equals the most shared."""
        root = self._roots.get(namespace)
        if root is None:
            return NO_MATCH
        wanted = list(tokens)
        best, best_edge = 0, root
        waiting = list(root.children)
        while waiting:
            edge = waiting.pop()
            count = edge.start + common_length(edge.tokens, wanted[edge.start : edge.end])
            if (count, len(edge.holders)) > (best, len(best_edge.holders)) and count > edge.start:
                best, best_edge = count, edge
            if count == edge.end:
                waiting += edge.children
        return Match(best, frozenset(best_edge.holders)) if best else NO_MATCH

    def count_held(self, holders: Collection[int]) -> int:
        """Cells that at least one of `holders` has."""
        wanted = frozenset(holders)
        return sum(len(edge.tokens) for edge in self._edges() if not wanted.isdisjoint(edge.holders))

    def count_shared(self, source: int, count: int, holders: Collection[int]) -> int:
        """Of the first `count` cells of `source`, those that at least one of `holders` has."""
        wanted = frozenset(holders)
        return sum(
            min(edge.end, count) - edge.start
            for edge in self._path(source)
            if edge.start < count and not wanted.isdisjoint(edge.holders)
        )

    def count_own(self, holder: int) -> int:
        """Cells that nobody else has; they lie at the end of its path."""
        tip = self._tips[holder]
        return len(tip.tokens) if len(tip.holders) == 1 and tip.parent is not None else 0

    # within

    def _path(self, holder: int) -> Iterator[_Edge]:
        """From the tip to the first edge below the root."""
        edge = self._tips[holder]
        while edge.parent is not None:
            yield edge
            edge = edge.parent

    def _root(self, holder: int) -> _Edge:
        edge = self._tips[holder]
        while edge.parent is not None:
            edge = edge.parent
        return edge

    def _edges(self) -> Iterator[_Edge]:
        waiting = [child for root in self._roots.values() for child in root.children]
        while waiting:
            edge = waiting.pop()
            waiting += edge.children
            yield edge

    def _split(self, edge: _Edge, count: int) -> _Edge:
        """Let `edge` end at position `count`; its rest, which is returned, is a child of its own."""
        keep = count - edge.start
        rest = _Edge(edge, count, edge.tokens[keep:], set(edge.holders))
        rest.children, edge.children = edge.children, [rest]
        for child in rest.children:
            child.parent = rest
        del edge.tokens[keep:]
        for holder in rest.holders:
            if self._tips[holder] is edge:
                self._tips[holder] = rest
        return rest

    def _leave(self, edge: _Edge, holder: int) -> None:
        edge.holders.remove(holder)
        parent = edge.parent
        if not edge.holders and parent is not None:
            parent.children.remove(edge)
            self._n_cells -= len(edge.tokens)
        else:
            self._join(edge)

    def _join_up(self, edge: _Edge) -> None:
        if edge.parent is not None:
            self._join(edge)

    def _join(self, edge: _Edge) -> None:
        """Undo a split that nothing needs any more, so that a long-lived path does not fall into crumbs."""
        if len(edge.children) != 1 or edge.children[0].holders != edge.holders:
            return
        (child,) = edge.children
        edge.tokens += child.tokens
        edge.children = child.children
        for grandchild in edge.children:
            grandchild.parent = edge
        for holder in edge.holders:
            if self._tips[holder] is child:
                self._tips[holder] = edge


def common_length(a: list[int], b: list[int]) -> int:
    """How many items both have in common from the first on."""
    least, most = 0, min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    while most - least > 1:  # a[:least] == b[:least], a[:most] != b[:most]
        middle = (least + most) // 2
        if a[least:middle] == b[least:middle]:
            least = middle
        else:
            most = middle
    return least

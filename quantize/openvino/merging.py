"""Token merging (`models.folding.merging`) as operators of an OpenVINO graph.

Next to no work beside the blocks: what is compared is one small product a block, and only rows are gathered. One-hot
rows times tokens join them: a scatter by index is slower in the plugin, and sums in no fixed order.

Every row that is gathered is wider than a register: for narrower ones the plugin has a kernel of its own, which for a
single tile reads beyond the indices' end and crashes or answers wrongly (2026.4; docs/notes/2026-11-30-openvino.md).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atlas_edge.quantize.openvino.operators import Operators

_END = np.iinfo(np.int64).max
_EPS = 1e-6
# Values of a row that is gathered, at least: 16 fit a register.
_WIDE = 32


@dataclass(frozen=True, slots=True)
class WrittenStream:
    """`merging.Stream` in a graph.

    Attributes:
        tokens: `(B, N, D)`.
        count: N.
        sizes: `(B, N, _WIDE)` how many patches each token stands for, over and over; None before anything was merged.
        places: Likewise in int32, the place of each token among those of the first block.
    """

    tokens: Any
    count: int
    sizes: Any = None
    places: Any = None


class MergeOperators(Operators):
    """Writes `merging.merge`, and what attention and pooling make of merged tokens."""

    def merged(self, stream: WrittenStream, attention: Any, count: int, prefix: int, *, placed: bool) -> WrittenStream:
        """Merge `count` tokens.

        Args:
            stream: After attention.
            attention: `(B, N)` that the CLS token pays to each; None where all count alike.
            count: How many.
            prefix: Tokens before the patches.
            placed: Whether anything asks for places.
        """
        op, columns = self.op, self.constant([2], "i64")
        odds, evens = (stream.count - prefix) // 2, (stream.count - prefix + 1) // 2
        bare = op.mvn(stream.tokens, columns, True, _EPS, "inside_sqrt")
        width = bare.output(0).get_partial_shape()[2].get_length()
        alike = op.matmul(*self._halves(bare, prefix), False, True)
        distance = op.subtract(self.constant(1.0), op.multiply(alike, self.constant(1 / width)))
        if attention is not None:
            weight = op.sqrt(self.slice(attention, prefix, _END, 2))
            distance = op.multiply(distance, op.unsqueeze(weight, columns))
        nearest = op.topk(distance, self.constant(1, "i64"), -1, "min", "value", "i32")
        found, partner = (op.squeeze(output, columns) for output in nearest.outputs())
        order = op.topk(found, self.constant(evens, "i64"), -1, "min", "value", "i32", True).output(1)
        gone, left = self.slice(order, 0, count), self.slice(order, count, _END)
        depth = self.constant(max(odds, _WIDE), "i64")
        goes = self._rows(op.one_hot(partner, depth, self.constant(1.0), self.constant(0.0), 2), gone)
        if odds < _WIDE:
            goes = self._first_values(goes, odds)
        sizes, places = self._sizes(stream), self._places(stream) if placed else None
        (even, weighted), (even_sizes, odd_sizes) = self._halves(stream.tokens, prefix), self._halves(sizes, prefix)
        moved, moved_sizes = self._rows(even, gone), self._rows(even_sizes, gone)
        if stream.sizes is not None:
            moved, weighted = (
                op.multiply(rows, self._first_values(numbers, 1))
                for rows, numbers in ((moved, moved_sizes), (weighted, odd_sizes))
            )
        grown = op.add(odd_sizes, op.matmul(goes, moved_sizes, True, False))
        joined = op.divide(op.add(weighted, op.matmul(goes, moved, True, False)), self._first_values(grown, 1))

        def with_prefix(whole: Any, evens: Any, odds: Any) -> Any:
            before = [self.slice(whole, 0, prefix)] if prefix else []
            return op.concat([*before, self._rows(evens, left), odds], 1)

        return WrittenStream(
            with_prefix(stream.tokens, even, joined),
            stream.count - count,
            with_prefix(sizes, even_sizes, grown),
            None if places is None else with_prefix(places, *self._halves(places, prefix)),
        )

    def of_cls(self, query: Any, key: Any, stream: WrittenStream) -> Any:
        """The attention `(B, N)` that the first token pays to each, mean over the heads; both `(B, heads, N, C)`."""
        op = self.op
        ends = (self.constant([value], "i64") for value in (0, 1, 1, 2))
        scores = self.with_sizes(op.matmul(op.slice(query, *ends), key, False, True), stream)
        return op.reduce_mean(op.softmax(scores, 3), self.constant([1, 2], "i64"), False)

    def with_sizes(self, scores: Any, stream: WrittenStream) -> Any:
        """Scores `(B, heads, M, N)` with the logarithm of the sizes."""
        if stream.sizes is None:
            return scores
        sizes = self.op.log(self.transpose(self._first_values(stream.sizes, 1), [0, 2, 1]))
        return self.op.add(scores, self.op.unsqueeze(sizes, self.constant([1], "i64")))

    def mean(self, stream: WrittenStream, start: int) -> Any:
        """The mean of the tokens from `start` on, each as often as it stands for a patch: `(B, 1, D)`."""
        op, rows = self.op, self.constant([1], "i64")
        tokens = self.slice(stream.tokens, start, _END)
        if stream.sizes is None:
            return op.reduce_mean(tokens, rows, keep_dims=True)
        sizes = self._first_values(self.slice(stream.sizes, start, _END), 1)
        return op.divide(op.reduce_sum(op.multiply(tokens, sizes), rows, True), op.reduce_sum(sizes, rows, True))

    def at_places(self, table: Any, stream: WrittenStream) -> Any:
        """A table `(1, heads or 1, N, C)` of all tokens for those that are left: `(B, heads or 1, M, C)`."""
        if stream.places is None:
            return table
        places = self.op.squeeze(self._first_values(stream.places, 1), self.constant([2], "i64"))
        rows = self.op.gather(self.op.squeeze(table, self.constant([0], "i64")), places, self.constant(1, "i64"))
        return self.transpose(rows, [1, 0, 2, 3])

    def first_of(self, stream: WrittenStream) -> WrittenStream:
        """Its first token alone."""
        return WrittenStream(self.first(stream.tokens), 1)

    def with_tokens(self, stream: WrittenStream, tokens: Any) -> WrittenStream:
        """The same with other tokens."""
        return replace(stream, tokens=tokens)

    def _sizes(self, stream: WrittenStream) -> Any:
        if stream.sizes is not None:
            return stream.sizes
        return self._for_each(stream, self.constant(np.ones((1, stream.count, _WIDE))))

    def _places(self, stream: WrittenStream) -> Any:
        if stream.places is not None:
            return stream.places
        return self._for_each(
            stream, self.op.constant(np.arange(stream.count, dtype=np.int32).repeat(_WIDE).reshape(1, -1, _WIDE))
        )

    def _for_each(self, stream: WrittenStream, values: Any) -> Any:
        """`(1, …)` for every tile."""
        op = self.op
        batch = op.gather(op.shape_of(stream.tokens), self.constant([0], "i64"), self.constant(0, "i64"))
        shape = [dimension.get_length() for dimension in values.output(0).get_partial_shape()][1:]
        return op.broadcast(values, op.concat([batch, self.constant(shape, "i64")], 0))

    def _first_values(self, rows: Any, count: int) -> Any:
        """`(B, N, count)` of `(B, N, …)`."""
        ends = (self.constant([value], "i64") for value in (0, count, 1, 2))
        return self.op.slice(rows, *ends)

    def _rows(self, tensor: Any, chosen: Any) -> Any:
        """Of `(B, N, at least _WIDE)` the rows `(B, M)`."""
        return self.op.gather(tensor, chosen, self.constant(1, "i64"), 1)

    def _halves(self, rows: Any, prefix: int) -> tuple[Any, Any]:
        """Those at even and at odd places behind the prefix."""
        return self.slice(rows, prefix, _END, 2), self.slice(rows, prefix + 1, _END, 2)

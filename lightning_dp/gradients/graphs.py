"""The unit map of a batch of graphs, read from the batch itself: one graph is one privacy unit.

Batches of torch-geometric are known by their attributes, so that nothing of that library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import leaves_of
from lightning_dp.gradients.units import UnitMap

__all__ = ("is_graph_batch", "rows_of_units", "units_of_batch")


def units_of_batch(batch: Any, samples: int | UnitMap) -> UnitMap:
    """The map of the rows of a batch, from whose its samples are.

    Args:
        batch: whatever the collate function made.
        samples: the number of samples, each a unit; or the map of samples to units.

    In any batch axis 0 is the batch axis, alone or with the second axis of one of the batch's tensors folded in behind it.
    Graph batches of torch-geometric (``Batch`` of ``Data`` or ``HeteroData``, alone or inside tuples, lists and dicts)
    bring their kinds of rows: nodes, edges, edges with the self-loops that a layer adds in front of or in place of the
    graph's own (``GCNConv``, ``GATConv``), further index tensors, and vectors made by ``follow_batch``.

    Raises:
        PrivacyError: if a graph batch does not hold one graph for each sample, or an edge joins two graphs.
    """
    whose = samples if isinstance(samples, UnitMap) else UnitMap(samples)
    count = _num_samples(whose)
    graphs = [leaf for leaf in _leaves(batch) if is_graph_batch(leaf)]
    kinds: dict[str, Tensor] = {}
    for number, graph in enumerate(graphs):
        if int(graph.num_graphs) != count:
            raise PrivacyError(
                f"the batch holds {graph.num_graphs} graphs for {count} samples drawn, so a graph is not a sample. Let "
                "the data set return one graph for each index, and keep transforms from adding or dropping graphs."
            )
        prefix = f"graph batch {number}: " if len(graphs) > 1 else ""
        kinds.update({prefix + kind: rows for kind, rows in _kinds(graph)})
    tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
    folds = {
        f"axis 1 of tensor {number}": tensor.shape[1]
        for number, tensor in enumerate(tensors)
        if tensor.dim() > 1 and tensor.shape[0] == count and tensor.shape[1] > 0
    }
    return rows_of_units(UnitMap(count, kinds=kinds, folds=folds), whose)


def rows_of_units(rows: UnitMap, samples: UnitMap) -> UnitMap:
    """From the samples that rows belong to, and the units that samples belong to, to the units that rows belong to.

    Args:
        rows: a map of rows to the batch's samples.
        samples: the map of the samples to units.

    Raises:
        PrivacyError: if ``rows`` is no map to so many samples.
    """
    count = _num_samples(samples)
    if not isinstance(rows, UnitMap) or rows.num_units != count:
        found = f"{rows.num_units} units" if isinstance(rows, UnitMap) else f"a {type(rows).__name__}"
        raise PrivacyError(
            f"unit_map returned {found} for a batch of {count} samples: return a lightning_dp.gradients.UnitMap with "
            f"num_units={count} that says to which sample of the batch each row belongs."
        )
    if count == samples.num_units and samples.rows is None:
        return replace(rows, terms=samples.terms) if rows.terms is None else rows
    owners = samples.owners(count)
    each = count // samples.num_units if samples.rows is None else 1
    folds = {name: each * length for name, length in rows.folds.items()}
    if each > 1:
        folds["samples"] = each
    return UnitMap(
        samples.num_units,
        samples.rows if rows.rows is None else owners[rows.rows.cpu()],
        samples.terms,
        {kind: owners.to(one.device)[one] for kind, one in rows.kinds.items()},
        folds,
    )


def _num_samples(samples: UnitMap) -> int:
    if samples.terms is not None:
        return int(samples.terms.sum())
    return samples.num_units if samples.rows is None else samples.rows.numel()


def is_graph_batch(value: Any) -> bool:
    """Whether a value is a torch-geometric batch: many graphs in one, each node with the number of its graph."""
    return hasattr(value, "num_graphs") and hasattr(value, "to_data_list") and hasattr(value, "keys")


def _kinds(graph: Any) -> Iterator[tuple[str, Tensor]]:
    if hasattr(graph, "node_types"):  # several types of nodes and edges
        for kind in graph.node_types:
            owners = graph[kind].get("batch")
            if isinstance(owners, Tensor):
                yield f"{kind} nodes", owners
        for source, relation, target in graph.edge_types:
            index, owners = graph[source, relation, target].get("edge_index"), graph[source].get("batch")
            if _is_index(index) and isinstance(owners, Tensor):
                _refuse_crossing(index, owners, graph[target].get("batch"))
                yield f"{source}-{relation}-{target} edges", owners[index[0]]
        return
    owners = graph.get("batch")
    if not isinstance(owners, Tensor):
        return
    yield "nodes", owners
    for key in graph.keys():  # noqa: SIM118  (a batch of graphs is no mapping)
        value = graph.get(key)
        if key == "edge_index" and _is_index(value):
            _refuse_crossing(value, owners, owners)
            edges, apart = owners[value[0]], value[0] != value[1]
            yield "edges", edges
            yield "edges and self-loops", torch.cat([edges, owners])
            yield "edges with self-loops replaced", torch.cat([edges[apart], owners])
        elif "index" in key and _is_index(value) and _inside(value, owners):
            yield key, owners[value[0]]
        elif key.endswith("_batch") and isinstance(value, Tensor) and value.dim() == 1 and value.dtype == torch.int64:
            yield f"{key.removesuffix('_batch')} rows", value


def _leaves(batch: Any) -> Iterator[Any]:
    if is_graph_batch(batch):
        yield batch
    elif isinstance(batch, (tuple, list, dict)):
        for leaf in batch.values() if isinstance(batch, dict) else batch:
            yield from _leaves(leaf)
    else:
        yield from leaves_of(batch)


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == 2 and value.dtype == torch.int64


def _inside(index: Tensor, owners: Tensor) -> bool:
    return index.numel() > 0 and 0 <= int(index.min()) <= int(index.max()) < owners.numel()


def _refuse_crossing(index: Tensor, source: Tensor, target: Tensor | None) -> None:
    if target is not None and index.numel() and not torch.equal(source[index[0]], target[index[1]]):
        raise PrivacyError(
            "an edge joins two graphs of the batch, so a graph's gradient depends on another's data. Keep the graphs of a "
            "batch apart: a transform of the batch may not connect them."
        )

"""What an audit keeps of its references, so that any re-audit can run the target alone.

Files beside the audit's tables, read only when they are needed: `kept.parquet`, p̄ of each token's OUT references (see
`mitigate.detection.signals.kept`); with calibration by shadows also `kept_judged.parquet`, p̄ of those that judge the
target there, and `shadows.parquet`, what was read of the shadows, which does not change with the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mitigate.artifacts.files import read_table, write_table
from mitigate.detection.signals.kept import KEPT_COLUMNS
from mitigate.detection.tables import list_of

_OWN, _JUDGED, _SHADOWS = "kept", "kept_judged", "shadows"
KEPT_OUT = ("log_prob_out", "entropy_out")  # kept besides, of the references that judge the target
Columns = dict[str, np.ndarray]


@dataclass
class KeptReferences:
    """Tables in memory, or in the directory of an audit until they are needed.

    Attributes:
        directory: where they are read from.
        tables: those in memory, by the names of their files.
    """

    directory: Path | None = None
    tables: dict[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def of(cls, own: Mapping[str, np.ndarray], rest: Mapping[str, np.ndarray] | None) -> KeptReferences:
        """Of the columns of an audit.

        Args:
            own: of the target beside all OUT references, with `KEPT_COLUMNS`.
            rest (*optional*): of the target beside those that judge it, with `KEPT_COLUMNS`, and after it of the
                shadows, which have none.
        """
        tables = {_OWN: _packed({name: own[name] for name in KEPT_COLUMNS})}
        if rest is not None:
            first = len(rest[KEPT_COLUMNS[0]])
            tables[_JUDGED] = _packed({name: rest[name][:first] for name in (*KEPT_COLUMNS, *KEPT_OUT)})
            tables[_SHADOWS] = _packed({n: column[first:] for n, column in rest.items() if n not in KEPT_COLUMNS})
        return cls(tables=tables)

    @classmethod
    def at(cls, directory: Path) -> KeptReferences | None:
        """Those of a saved audit; None where nothing was kept."""
        return cls(directory) if (directory / f"{_OWN}.parquet").is_file() else None

    def save(self, directory: Path) -> None:
        """Write them among the files of an audit."""
        for name in (_OWN, _JUDGED, _SHADOWS):
            if (table := self._table(name)) is not None:
                write_table(directory / f"{name}.parquet", table)

    @property
    def own(self) -> Columns:
        """`KEPT_COLUMNS` of all OUT references, over the audit's tokens."""
        return self._columns(_OWN)

    @property
    def judged(self) -> Columns:
        """`KEPT_COLUMNS`, `log_prob_out` and `entropy_out` of the references that judge the target beside shadows."""
        return self._columns(_JUDGED)

    @property
    def shadows(self) -> Columns:
        """Columns of `compute_signals` of the shadows and the spare references, in the order of their plan."""
        return self._columns(_SHADOWS)

    def _columns(self, name: str) -> Columns:
        table = self._table(name)
        assert table is not None
        return _unpacked(table)

    def _table(self, name: str) -> pa.Table | None:
        if name not in self.tables and self.directory is not None:
            path = self.directory / f"{name}.parquet"
            if path.is_file():
                return read_table(path)
        return self.tables.get(name)


def _packed(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """A table of columns (N,) and (N, k), of which -inf, where nothing was kept, and NaN take no place.

    Entries of `kept_ids` and `kept_log_probs` that were kept come first in their rows.
    """
    packed = {}
    held = columns["kept_log_probs"] > -np.inf if "kept_log_probs" in columns else None
    for name, column in columns.items():
        if column.ndim == 1:
            packed[name] = pa.array(column, from_pandas=True)
            continue
        there = held if name in KEPT_COLUMNS and held is not None else np.ones(column.shape, dtype=bool)
        ends = np.cumsum(np.concatenate([[0], there.sum(axis=1)]))
        values = pa.array(column[there].astype(np.int32 if name == "kept_ids" else np.float32))
        packed[name] = pa.LargeListArray.from_arrays(ends, values).cast(list_of(values.type, large=True))
    return pa.table(packed)


def _unpacked(table: pa.Table) -> Columns:
    """As `_packed` was given it, with as many entries as the longest row has."""
    columns: Columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if not pa.types.is_large_list(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False).astype(np.float32)
            continue
        ends = column.offsets.to_numpy()
        lengths = np.diff(ends)
        filling = -np.inf if name == "kept_log_probs" else 0.0
        wide = np.full((len(column), int(lengths.max(initial=0))), filling, dtype=np.float32)
        wide[np.arange(wide.shape[1]) < lengths[:, None]] = column.values.to_numpy()[ends[0] : ends[-1]]
        columns[name] = wide
    return columns

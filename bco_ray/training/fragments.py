"""The state of a training as named pieces of parameters: what a checkpoint holds, whoever held which piece.

A worker's share is a list of fragments: consecutive elements of a parameter (its float32 weight) with what the
optimizer keeps beside them. Reading asks for any range and gets it put together from whatever pieces were written, so
another number of workers or another ZeRO stage reads the same state.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from bco_ray.storage.checkpoints import DamagedError

WEIGHT = "weight"
"""The kind of a parameter's own elements; other kinds are the optimizer's names (`exp_avg`)."""

EXTRA = "extra"
"""The kind of what belongs to no parameter (a random generator's state)."""

Number = Tensor | int | float


@dataclass(frozen=True)
class Fragment:
    """Elements `start` and following of a flattened parameter, by kind; `numbers` hold for all of it (Adam's step)."""

    name: str
    start: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Number] = field(default_factory=dict)


def host_copy(fragments: Iterable[Fragment], extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All pieces by key, in memory that training does not touch any more."""
    copied = {f"{name}|{EXTRA}|": _copied(tensor) for name, tensor in extras.items()}
    for fragment in fragments:
        for kind, tensor in fragment.tensors.items():
            copied[f"{fragment.name}|{kind}|{fragment.start}"] = _copied(tensor.detach().reshape(-1))
        for kind, number in fragment.numbers.items():
            copied[f"{fragment.name}|{kind}|"] = _copied(torch.as_tensor(number))
    return copied


def _copied(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True).contiguous()


def share(sizes: Sequence[int], rank: int, workers: int) -> list[tuple[int, int, int]]:
    """(parameter, start, end) of the rank's even share of parameters laid end to end, where every worker has them all.

    Every parameter with elements is somebody's; none is two workers'.
    """
    total = sum(sizes)
    low, high = total * rank // workers, total * (rank + 1) // workers
    found, offset = [], 0
    for number, size in enumerate(sizes):
        start, end = max(low - offset, 0), min(high - offset, size)
        if start < end:
            found.append((number, start, end))
        offset += size
    return found


@dataclass(frozen=True)
class _Piece:
    start: int
    numel: int
    file: Any
    key: str


class SavedState:
    """A checkpoint's pieces. Files are opened, in order, when what was asked for is not in those before."""

    def __init__(self, names: Sequence[str], opener: Callable[[str], AbstractContextManager[Path]]) -> None:
        self._names = list(names)
        self._opened = 0
        self._opener = opener
        self._stack = ExitStack()
        self._pieces: dict[tuple[str, str], list[_Piece]] = defaultdict(list)
        self._numbers: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, count: int) -> None:
        """Have the first `count` files open, and so verified. Raises DamagedError, or OSError of the store."""
        while self._opened < count:
            self._index(self._names[self._opened])
            self._opened += 1

    def kinds(self, name: str) -> set[str]:
        """Of pieces kept of a parameter."""
        self._require(name, WEIGHT)
        return {kind for found, kind in self._pieces if found == name}

    def read(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        """That range of a flattened parameter, on the host. Raises DamagedError if no file has it all."""
        while (found := self._put_together(name, kind, start, numel)) is None:
            self._open_next(f"{name}: {kind} from {start} to {start + numel} is in no file of the checkpoint.")
        return found

    def numbers(self, name: str) -> dict[str, Number]:
        """Kind -> tensor, or whole number where it was one."""
        self._require(name, WEIGHT)
        found = {kind: tensor for (owner, kind), tensor in self._numbers.items() if owner == name}
        return {kind: tensor if tensor.is_floating_point() else int(tensor) for kind, tensor in found.items()}

    def extra(self, name: str) -> Tensor | None:
        """What belongs to no parameter, from the first of the files opened so far that has it."""
        return self._numbers.get((name, EXTRA))

    def _require(self, name: str, kind: str) -> None:
        while (name, kind) not in self._pieces:
            self._open_next(f"{name}: in no file of the checkpoint.")

    def _open_next(self, otherwise: str) -> None:
        if self._opened == len(self._names):
            raise DamagedError(otherwise)
        self.open(self._opened + 1)

    def _index(self, name: str) -> None:
        path = self._stack.enter_context(self._opener(name))
        file = self._stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            owner, kind, start = key.split("|")
            if not start:
                self._numbers.setdefault((owner, kind), file.get_tensor(key))
                continue
            pieces = self._pieces[owner, kind]
            piece = _Piece(int(start), file.get_slice(key).get_shape()[0], file, key)
            pieces.insert(bisect_right(pieces, piece.start, key=lambda p: p.start), piece)

    def _put_together(self, name: str, kind: str, start: int, numel: int) -> Tensor | None:
        parts, at, end = [], start, start + numel
        for piece in self._pieces.get((name, kind), ()):
            if piece.start <= at < piece.start + piece.numel:
                stop = min(end, piece.start + piece.numel)
                parts.append(piece.file.get_slice(piece.key)[at - piece.start : stop - piece.start])
                at = stop
        if at < end:
            return None
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def restored_number(saved: Number, device: torch.device) -> Number:
    """As an optimizer keeps it: a tensor where it belongs, a plain number otherwise."""
    return saved.to(device, copy=True) if isinstance(saved, Tensor) else saved


def pieces_of(state: dict[str, Any], like: Tensor) -> Iterator[tuple[str, Any, bool]]:
    """(kind, value, whether it is a tensor as large as `like`) of one parameter's optimizer state."""
    for kind, value in state.items():
        yield kind, value, isinstance(value, Tensor) and value.numel() == like.numel() and value.dim() > 0

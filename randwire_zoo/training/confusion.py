"""Which classes a network takes for which: the table that `randwire-zoo eval --confusion` writes."""
from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ['Confusion', 'check_table']


class Confusion:
    """Counts images by their true class and the one that is predicted, by the rule of timm's top-1."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, outputs] and class indices [B]."""
        outputs = logits.shape[-1]
        # What topk puts first among equals depends on how many it is asked for: this is timm's question.
        predicted = logits.detach().float().topk(min(5, outputs), dim=-1).indices[:, 0]
        counts = torch.bincount(targets * outputs + predicted, minlength=outputs ** 2).view(outputs, outputs).cpu()
        self.counts = counts if self.counts is None else self.counts + counts

    def write(self, path: Path, classes: Mapping[str, int], label_names: Sequence[str] = ()) -> None:
        """Write a row for each true class and a column for each output of the network, by their names.

        Args:
            path: Where to.
            classes: The index of each class of the images, where these have names. A row is one of them.
            label_names: What the network's outputs are called that have no images, in their order.
        """
        assert self.counts is not None, 'there are no images'
        outputs = len(self.counts)
        names = [f'output {index}' for index in range(outputs)]
        names[:len(label_names)] = label_names[:outputs]
        for index in set(classes.values()) & set(range(outputs)):
            names[index] = ' or '.join(name for name, number in classes.items() if number == index)  # of a class map
        rows = set(classes.values()) or set(range(outputs))
        with path.open('w', encoding='utf-8', newline='') as file:
            writer = csv.writer(file, lineterminator='\n')
            writer.writerow(['true', *names])
            for index, (name, counts) in enumerate(zip(names, self.counts.tolist(), strict=True)):
                if index in rows:
                    writer.writerow([name, *counts])


def check_table(path: str | Path) -> Path:
    """The path of a table to write.

    Raises:
        ValueError: if it is that of another kind of file, or of a folder.
    """
    path = Path(path)
    if path.suffix.lower() != '.csv' or path.is_dir():
        raise ValueError(f'--confusion writes a file that ends in .csv, got {str(path)!r}')
    return path

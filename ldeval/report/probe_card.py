"""The dataset card of a probe set, and the folder it stands in.

The card's header tells ``datasets`` and the Hub where the rows are; its body is made of
counts and fixed words, so that no text of a source gets into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ldeval.probes import probe_to_record
from ldeval.probes.dataset import write_dataset
from ldeval.records import KINDS, Probe
from ldeval.report.tables import Column, Table, to_markdown

_HEADER = """\
---
pretty_name: Probe set for ldeval
tags:
- ldeval
- preference
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: probes
    path: data/probes-*.parquet
---
"""
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
"""The Hub's names of sizes: rows below, and the name."""


def write_probe_dataset(folder: Path, probes: Iterable[Probe]) -> int:
    """Write probes as a dataset folder with its card; gives their number.

    Raises:
        ProbeError: when the folder holds something else.
    """
    counts: Counter[tuple[str, str]] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for probe in probes:
            counts[probe.split, ""] += 1
            counts.update((probe.split, kind) for kind in probe.responses)
            yield probe_to_record(probe)

    write_dataset(folder, records(), lambda: dataset_card(counts))
    return counts["trained", ""] + counts["heldout", ""]


def dataset_card(counts: Counter[tuple[str, str]]) -> str:
    """README.md of a dataset folder.

    Args:
        counts: by split and kind; under the kind "", the probes of a split.
    """
    trained, heldout = counts["trained", ""], counts["heldout", ""]
    size = next((name for n, name in _SIZES if trained + heldout < n), "n>10M")
    table = Table(
        "Responses",
        (
            Column("kind", "left"),
            Column("what it is", "left"),
            Column("region", "left"),
            Column("trained"),
            Column("held out"),
        ),
        tuple(
            (
                kind.name,
                kind.summary,
                kind.region,
                str(counts["trained", kind.name]),
                str(counts["heldout", kind.name]),
            )
            for kind in KINDS
        ),
    )
    return (
        _HEADER.format(size=size)
        + f"""
# Probe set

{trained} trained and {heldout} held-out prompts. Each row is one prompt with its chosen
response and controlled variations of it; ldeval scores them under the checkpoints of a
training run and shows which gained probability and which lost it.

{to_markdown(table, heading=2)}
`prompt` is text, or null where `messages` holds a conversation; `trained` says whether
the run trains on the prompt; `meta` is JSON: `sources` of the responses, why a kind is
`missing`, the `row` of the source, the models that wrote some of it.

```sh
ldeval probes check FOLDER
ldeval sweep RUN --base MODEL --store STORE --probes FOLDER
LDEVAL_PROBES=FOLDER lm_eval --tasks ldyn_probes --model_args pretrained=MODEL
```

```python
datasets.load_dataset("FOLDER", split="probes")
```

The licence is that of the data it was built from: state it here before you publish.
"""
    )

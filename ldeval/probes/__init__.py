"""Probe sets: reading, validation, hashing, import and building. No torch here."""

from ldeval.probes.perturb import derangement, permute_words
from ldeval.probes.probe_set import (
    ProbeSet,
    count_kinds,
    iter_probes,
    parse_probe,
    probe_to_record,
    read_probes,
    text_hash,
    write_probes,
)
from ldeval.probes.reference import ImportReport, import_reference
from ldeval.probes.written import derive_offline_kinds, read_sentences

__all__ = [
    "ImportReport",
    "ProbeSet",
    "count_kinds",
    "derangement",
    "derive_offline_kinds",
    "import_reference",
    "iter_probes",
    "parse_probe",
    "permute_words",
    "probe_to_record",
    "read_probes",
    "read_sentences",
    "text_hash",
    "write_probes",
]

"""Probe sets: reading, validation, hashing, import and building. No torch here."""

from ldeval.probes.build import derive_offline_kinds, read_sentences
from ldeval.probes.perturb import derangement, permute_words
from ldeval.probes.probe_set import (
    ProbeSet,
    count_kinds,
    parse_probe,
    probe_to_record,
    read_probes,
    text_hash,
    write_probes,
)
from ldeval.probes.reference import ImportReport, import_reference

__all__ = [
    "ImportReport",
    "ProbeSet",
    "count_kinds",
    "derangement",
    "derive_offline_kinds",
    "import_reference",
    "parse_probe",
    "permute_words",
    "probe_to_record",
    "read_probes",
    "read_sentences",
    "text_hash",
    "write_probes",
]

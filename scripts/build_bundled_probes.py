"""Rebuild tasks/probes.jsonl from the written texts in data/bundled/.

    python scripts/build_bundled_probes.py [--model DIR]

Without --model the ``initial`` responses of the present file are kept (they are samples
of the demo model and need it); with it they are sampled anew.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ldeval.bundled import bundled_probes
from ldeval.probes import (
    derive_offline_kinds,
    read_probes,
    read_sentences,
    write_probes,
)
from ldeval.records import KIND_BY_NAME, Probe, Response

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "data" / "bundled"
SEED = 20260731


def with_sources(probe: Probe) -> Probe:
    """Say of each written response where it came from: a rephrase, from its probe."""
    responses = {}
    for kind, response in probe.responses.items():
        rephrase = KIND_BY_NAME[kind].rephrase_of is not None
        source = probe.probe_id if rephrase else "written"
        responses[kind] = Response(kind, response.text, source)
    return replace(probe, responses=responses)


def with_initial(probe: Probe, old: Probe | None) -> Probe:
    """Carry the sampled response over from the present file."""
    if old is None or "initial" not in old.responses:
        return probe
    meta = {**probe.meta, "initial_model": old.meta["initial_model"]}
    responses = {**probe.responses, "initial": old.responses["initial"]}
    return replace(probe, responses=responses, meta=meta)


def main() -> None:
    """Build, carry or sample ``initial``, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="sample 'initial' anew from this model")
    arguments = parser.parse_args()
    written = [with_sources(p) for p in read_probes(SOURCE / "written.jsonl")]
    sentences = read_sentences(SOURCE / "sentences.txt")
    probes = derive_offline_kinds(written, sentences, seed=SEED)
    target = bundled_probes()
    if arguments.model:
        from ldeval.scoring.generate import sample_initial

        probes = sample_initial(probes, arguments.model)
    elif target.exists():
        old = {probe.probe_id: probe for probe in read_probes(target)}
        probes = [with_initial(p, old.get(p.probe_id)) for p in probes]
    write_probes(target, probes)
    print(f"wrote {len(probes)} probes to {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

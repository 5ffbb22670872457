"""Preference pairs that a model wrote itself.

Each prompt is answered several times; a judge ranks the answers, and the best and the
worst make a pair. The judge here only says which of the data's two responses an answer
is more like, letter by letter: it stands in for a reward model, and is the function to
replace.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rapidfuzz import fuzz

from ldeval.probes import ProbeSet
from ldeval.records import Probe, Response
from ldeval.scoring.generate import InitialSampler

KEPT = ("initial", "irrelevant_test", "random_sentence", "random_words")
"""Kinds that are not made of the data's chosen and rejected responses."""


def judge(probe: Probe, text: str) -> float:
    """How good an answer is: nearer to the data's chosen response is better."""
    chosen, rejected = probe.responses["chosen"], probe.responses["rejected"]
    return float(fuzz.ratio(text, chosen.text) - fuzz.ratio(text, rejected.text))


def on_policy_probes(
    probes: ProbeSet, model: Path, *, samples: int, seed: int
) -> ProbeSet:
    """Probes whose chosen and rejected responses are the model's own.

    Prompts that are answered in one way only make no pair; they are counted and left
    out.
    """
    answers: dict[str, list[str]] = {probe.probe_id: [] for probe in probes}
    for number in range(samples):
        sampler = InitialSampler(str(model), seed=seed * samples + number)
        for probe in sampler(list(probes)):
            if "initial" in probe.responses:
                text = probe.responses["initial"].text
                if text not in answers[probe.probe_id]:
                    answers[probe.probe_id].append(text)
    paired = [_paired(probe, answers[probe.probe_id]) for probe in probes]
    kept = [probe for probe in paired if probe is not None]
    print(f"on policy: {len(kept)} pairs, {len(probes) - len(kept)} prompts without")
    return ProbeSet(tuple(_with_irrelevant(kept)))


def _paired(probe: Probe, answers: list[str]) -> Probe | None:
    if len(answers) < 2 or "rejected" not in probe.responses:
        return None
    ranked = sorted(answers, key=lambda text: judge(probe, text))
    responses = {k: r for k, r in probe.responses.items() if k in KEPT}
    responses["chosen"] = Response("chosen", ranked[-1], "sampled")
    responses["rejected"] = Response("rejected", ranked[0], "sampled")
    return replace(probe, responses=responses)


def _with_irrelevant(probes: list[Probe]) -> list[Probe]:
    """Beside each prompt the chosen response of another trained one."""
    trained = [probe for probe in probes if probe.trained]
    found = []
    for place, probe in enumerate(probes):
        others = [other for other in trained if other is not probe]
        if others:
            other = others[place % len(others)]
            text = other.responses["chosen"].text
            response = Response("irrelevant_train", text, other.probe_id)
            responses = {**probe.responses, "irrelevant_train": response}
            probe = replace(probe, responses=responses)
        found.append(probe)
    return found

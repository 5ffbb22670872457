"""What the page says of first order in words and tables; its numbers are a block.

Blocks hold what ``report.json`` does (:mod:`ldeval.report.dynamics_json`), so that what
is downloaded from the page is what the command writes.
"""

from __future__ import annotations

from typing import Any

from ldeval.report.dynamics_match import Joined
from ldeval.report.dynamics_tables import (
    influence_tables,
    prediction_tables,
    settings_table,
)
from ldeval.report.page.view import table_record
from ldeval.report.tables import Table


def dynamics_view(joined: Joined) -> dict[str, Any]:
    """What one folder of results holds, worded and rounded."""
    found = joined.results
    parts: dict[str, list[Table]] = {}
    if found.prediction is not None:
        settings = settings_table(found.prediction.settings, "Settings")
        parts["prediction"] = [*prediction_tables(found.prediction), settings]
    if found.influence is not None:
        settings = settings_table(found.influence.settings, "Settings")
        parts["influence"] = [*influence_tables(found.influence), settings]
    if found.risk is not None:
        parts["risk"] = [settings_table(found.risk.settings, "Settings")]
    return {
        "name": joined.name,
        "checked": list(joined.checked),
        "parts": {
            part: [table_record(table) for table in tables if table.rows]
            for part, tables in parts.items()
        },
    }

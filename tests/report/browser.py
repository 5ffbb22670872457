"""Where the browser of the page's tests is, and how it is driven."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSER = next(
    filter(
        None,
        map(
            shutil.which,
            ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        ),
    ),
    None,
)
DRIVEN = BROWSER is not None and importlib.util.find_spec("playwright") is not None


def expect_count(found: Locator, count: int) -> None:
    """So many are found, at once or soon: a page answers when its events have run."""
    from playwright.sync_api import expect

    expect(found).to_have_count(int(count))  # a table counts in NumPy's own


@dataclass
class Watched:
    """A page, and everything that it complained about or asked of the world."""

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self._heard(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"{kind}: {text}")

    def check(self) -> None:
        """Nothing was complained of, and nothing but the file itself was asked for."""
        assert self.faults == []
        outside = [
            u for u in self.requests if not u.startswith(("file:", "data:", "blob:"))
        ]
        assert outside == []
        assert sum(url.startswith("file:") for url in self.requests) == 1

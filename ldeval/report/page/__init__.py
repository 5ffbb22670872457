"""One run, or several stages, as a single HTML file that opens offline.

::

    page/
    ├── build.py     the file: shell, style sheet, scripts, policy, data
    ├── view.py      what is said on the page, in words and tables
    ├── dynamics.py  what is said of first order, in words and tables
    ├── scores.py    what the page shows of single prompts, gathered from the tables
    ├── pieces.py    the text of token ids
    └── blocks.py    values as text inside a page: JSON, and packed columns

Its style sheets and scripts are in ``report/templates``. The page holds numbers and
text as data, and its scripts put them in place as text and nothing else.
"""

from ldeval.report.page.build import PageRun, render_page
from ldeval.report.page.pieces import Pieces, read_pieces

__all__ = ["PageRun", "Pieces", "read_pieces", "render_page"]

"""Files written whole or not at all, on a disk or in a store at a URL.

Every file that ldeval leaves behind is written here; places at URLs and on disks are
used alike.
"""

from ldeval.files.arrays import claimed_shape
from ldeval.files.formats import (
    DAMAGED_ARRAY,
    MALFORMED,
    lenient_json,
    strict_json,
    understood,
)
from ldeval.files.litter import clear_litter, temporary_folder, temporary_name
from ldeval.files.places import (
    REACH,
    ROOM,
    is_remote,
    named,
    own_name,
    place,
)
from ldeval.files.reading import (
    file_size,
    local_copy,
    passing_downloads,
    read_text,
)
from ldeval.files.trees import (
    move_tree,
    remove,
    remove_tree,
    replace_tree,
    restore_tree,
)
from ldeval.files.writing import (
    copy_whole,
    refuse_link,
    write_together,
    write_whole,
    written,
)

__all__ = [
    "DAMAGED_ARRAY",
    "MALFORMED",
    "REACH",
    "ROOM",
    "claimed_shape",
    "clear_litter",
    "copy_whole",
    "file_size",
    "is_remote",
    "lenient_json",
    "local_copy",
    "move_tree",
    "named",
    "own_name",
    "passing_downloads",
    "place",
    "read_text",
    "refuse_link",
    "remove",
    "remove_tree",
    "replace_tree",
    "restore_tree",
    "strict_json",
    "temporary_folder",
    "temporary_name",
    "understood",
    "write_together",
    "write_whole",
    "written",
]

"""Where lightly is not installed, the files that compare with it are left out."""

import importlib.util
import re
from pathlib import Path

collect_ignore = []
if importlib.util.find_spec("lightly") is None:
    imports = re.compile(r"^(import|from) lightly", re.MULTILINE)
    files = Path(__file__).parent.glob("test_*.py")
    collect_ignore += [path.name for path in files if imports.search(path.read_text())]

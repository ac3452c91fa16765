"""Imported by a Python process that has this folder on its path, as it starts.

Counts the moments at which the process moves a file to its place, and lets FAULT happen at the one
numbered FAULT_AT (from 1). WITNESS is a file that says that it has happened.
"""

import os
import resource
import shutil
import signal
from pathlib import Path

if "FAULT" in os.environ:
    fault, number = os.environ["FAULT"], int(os.environ["FAULT_AT"])
    replace, moment = os.replace, 0

    def happen(source, target):
        source, target = Path(source), Path(target)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "killed in the middle of a file":
            os.truncate(source, source.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "killed after the move":
            replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault == "full disk":  # which takes no more than a few bytes from now on
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        elif fault == "folder gone":
            source.unlink()  # the process cannot find it where it goes
            shutil.move(target.parent, target.parent.with_name("elsewhere"))

    def counted(source, target, **options):
        global moment
        moment += 1
        with open(os.environ["WITNESS"], "w") as file:
            file.write(f"{moment} {target}")
        if moment == number:
            happen(source, target)
        replace(source, target, **options)

    setattr(os, "replace", counted)  # noqa: B010  mypy sees a function of other types there

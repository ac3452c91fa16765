"""Imported by a Python process that has this folder on its path, as it starts.

Counts the moments at which the process moves a file to its place, and lets FAULT happen at the one
numbered FAULT_AT (from 1). WITNESS is a file that says that it has happened. Of several processes
that train together each leaves its id beside it.
"""

import errno
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

if "FAULT" in os.environ:
    fault, number = os.environ["FAULT"], int(os.environ["FAULT_AT"])
    replace, moment, witness = os.replace, 0, os.environ["WITNESS"]
    if "RANK" in os.environ:
        Path(f"{witness}-{os.environ['RANK']}").write_text(str(os.getpid()))

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
        elif fault == "read-only":
            sys.addaudithook(refuse)
        elif fault == "another process dies":
            os.kill(int(Path(f"{witness}-1").read_text()), signal.SIGKILL)
        elif fault == "folder gone":
            source.unlink()  # the process cannot find it where it goes
            shutil.move(target.parent, target.parent.with_name("elsewhere"))

    def refuse(event, arguments):
        """Nothing in the run directory can be changed from now on."""
        changes = event in ("os.rename", "os.remove", "os.mkdir")
        if event == "open":
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        inside = f"{Path(witness).parent}/run/"
        if changes and str(arguments[0]).startswith(inside):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

    def counted(source, target, **options):
        global moment
        moment += 1
        with open(witness, "w") as file:
            file.write(f"{moment} {target}")
        if moment == number:
            happen(source, target)
        replace(source, target, **options)

    setattr(os, "replace", counted)  # noqa: B010  mypy sees a function of other types there

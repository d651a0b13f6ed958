"""Packages from PyPI for the tests that need one."""

import os
import subprocess
import sys
import venv

SKIPPED = 77


def enter(folder, package, name):
    """Runs the script that calls it again, in a virtual environment that has the package. Makes the environment where it is not
    there, and ends the script with SKIPPED where the package, which is called `name`, cannot be had."""
    python = os.path.join(folder, "bin", "python")
    ready = os.path.join(folder, "ready")
    if not os.path.exists(ready):
        venv.create(folder, with_pip=True, clear=True)
        install = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
                                 capture_output=True, text=True, timeout=240)
        if install.returncode != 0:
            print(f"skipped: {name} cannot be had:", install.stderr.strip().split("\n")[-1])
            sys.exit(SKIPPED)
        open(ready, "w").close()
    os.execv(python, [python, *sys.argv])

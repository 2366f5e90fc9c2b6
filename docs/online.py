"""Set up a notebook that Kaggle's or Colab's editor opened alone: its first cell clones the repository and
runs this file, before any package is there.

The locked packages replace those of the editor's image, so that the run is the one that the tests test.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
began = time.monotonic()
try:
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
except (OSError, subprocess.CalledProcessError):
    found = ""
lock = ROOT / ("requirements.txt" if found else "requirements-cpu.txt")
print(f"{found.strip() or 'no GPU: only the tiny profiles'}; installing {lock.name}", flush=True)
subprocess.run([sys.executable, "-m", "pip", "install", "-q", "uv"], check=True)
installing = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable, "--no-deps"]
subprocess.run([*installing, "--torch-backend", "auto" if found else "cpu", "-r", str(lock)], check=True)
sys.path.insert(0, str(ROOT / "src"))
os.environ["PYTHONPATH"] = str(ROOT / "src")  # for the processes that the notebook starts
os.chdir(ROOT / "notebooks")
print(f"ready in {time.monotonic() - began:.0f} s; runs go to {ROOT / 'runs'}")

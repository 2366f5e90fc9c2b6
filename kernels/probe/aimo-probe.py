# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AIMO probe
#
# What the machine of a session has, in a minute: the first kernel to push, before one that costs hours. It
# needs no wheels and no package.

# %% tags=["parameters"]
shown = 50  # inputs that are listed at the end

# %% [markdown]
# ## GPUs

# %%
import os
import re
import shutil
import subprocess
from pathlib import Path

smi = shutil.which("nvidia-smi")
print(subprocess.run([smi], capture_output=True, text=True).stdout if smi else "This session has no GPU.")

# %% [markdown]
# ## What this package needs

# %%
asked = "--query-gpu=name,memory.total,compute_cap,driver_version"
command = [smi, asked, "--format=csv,noheader,nounits"]
told = subprocess.run(command, capture_output=True, text=True).stdout if smi else ""
gpus = [re.split(r",\s*", line) for line in told.splitlines()]
memory = sum(float(gpu[1]) for gpu in gpus) / 1024  # GiB
free = shutil.disk_usage("/tmp").free / 1e9
host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
facts = {
    "GPUs": ", ".join(f"{name}, {float(mib) / 1024:.0f} GiB" for name, mib, *_ in gpus) or "none",
    "driver for CUDA 13 (580.65 or newer)": ", ".join({gpu[3] for gpu in gpus}) or "none",
    "compute capability for vLLM (7.5 or newer)": ", ".join({gpu[2] for gpu in gpus}) or "none",
    "bfloat16 (8.0), fp8 cache (8.9)": ", ".join(
        "both" if float(gpu[2]) >= 8.9 else "bfloat16" if float(gpu[2]) >= 8 else "neither" for gpu in gpus
    ),
    "CPU cores, memory": f"{os.cpu_count()}, {host:.0f} GB",
    "free disk in /tmp": f"{free:.0f} GB",
}
for name, value in facts.items():
    print(f"{name:45} {value}")

# %% [markdown]
# ## What would fit
# Weights with a tenth of the memory left for the KV cache; `aimo` works out the rest before it loads.

# %%
models = {
    "gpt-oss-120b (MXFP4)": 64.4,
    "Qwen3-30B-A3B (bfloat16)": 57.0,
    "Nemotron-3-Nano-30B (bfloat16)": 59.0,
    "gpt-oss-20b (MXFP4)": 13.7,
    "DeepSeek-R1-Distill-Qwen-14B (AWQ)": 9.3,
    "Qwen3-4B (bfloat16)": 7.5,
    "Qwen3-1.7B (bfloat16)": 3.3,
}
for name, gib in models.items():
    print(f"{name:40} {gib:5.1f} GiB  {'fits' if gib < 0.85 * memory else 'does not fit'}")

# %% [markdown]
# ## Inputs

# %%
for path in sorted(Path("/kaggle/input").glob("*/*"))[:shown]:
    print(path)

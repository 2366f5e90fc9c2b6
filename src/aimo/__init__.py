"""From a base model to an AI Mathematical Olympiad submission. `aimo.stages` has the table of the stages."""

import atexit
import gc

# With one full collection for ten of the younger ones, a quarter of the time in which torch, TRL and vLLM are
# imported goes to them; the last one, at a process's end, takes 2 s.
gc.set_threshold(*gc.get_threshold()[:2], 1000)
atexit.register(gc.freeze)

"""Every test runs in silence, on one thread, and offline."""

import os

os.environ["LLAMA3_LAB_PROGRESS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

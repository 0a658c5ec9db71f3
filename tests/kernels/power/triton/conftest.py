"""The interpreter takes the whole process: its tests run where TRITON_INTERPRET=1 is set, and only they do."""

import os

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = (
    ["hopper", "test_gpu.py", "test_ahead_of_time.py", "test_tune.py"] if interpreted else ["test_interpreted.py"]
)

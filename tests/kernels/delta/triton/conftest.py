"""The interpreter takes the whole process: its tests run where TRITON_INTERPRET=1 is set, and only they do."""

import os

collect_ignore = (
    ["test_gpu.py", "test_ahead_of_time.py"]
    if os.environ.get("TRITON_INTERPRET") == "1"
    else ["test_interpreted.py", "test_powers.py"]
)

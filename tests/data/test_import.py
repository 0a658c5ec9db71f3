import subprocess
import sys


def test_importing_the_data_package_needs_no_optional_library():
    code = "import sys, zoo.data; assert not {'tokenizers', 'pyarrow'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

"""Files that are written whole or not at all, by processes that may be killed."""

import os
import signal
import subprocess
import sys

from sem_jax.data.files import open_atomically, write_atomically

KILLED = (
    "import os, signal, sys\n"
    "from pathlib import Path\n"
    "from sem_jax.data.files import open_atomically\n"
    "with open_atomically(Path(sys.argv[1])) as file:\n"
    "    file.write(b'half')\n"
    "    file.flush()\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)


def test_what_a_killed_writer_leaves_is_removed_by_the_next_and_a_living_one_is_not_disturbed(tmp_path):
    path = tmp_path / "config.json"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    with open_atomically(path) as file:
        write_atomically(path, "first")
        file.write(b"second")
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]
    assert path.read_text() == "second"

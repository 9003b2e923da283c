"""Read each file in a process that may have little memory and time; a script, which gets a folder of files.

The limits count from where an idle reader is, so each process is a copy of this one.
"""

import json
import os
import resource
import sys
from pathlib import Path

from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import read_tensors

SECONDS, BYTES = 3, 256 << 20
NO_MEMORY = 2


def read(path):
    """Exits with 0 if the file was read or was one sentence."""
    page_count = int(Path("/proc/self/statm").read_text().split()[0])
    most = page_count * os.sysconf("SC_PAGE_SIZE") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        content = read_tensors(path)
        del content
    except UserError as sentence:
        if isinstance(sentence.__cause__, MemoryError) or "allocate" in str(sentence.__cause__):
            os._exit(NO_MEMORY)
    os._exit(0)


def read_in_a_copy(path):
    process = os.fork()
    if not process:
        read(path)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    print(json.dumps({path.name: read_in_a_copy(path) for path in Path(sys.argv[1]).iterdir()}))

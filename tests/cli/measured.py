"""The program, which in the end says on stderr how much memory it took at most, in KiB."""

import resource
import sys

from acp_store.cli.__main__ import main

if __name__ == "__main__":
    main(sys.argv[1:])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)

"""`db check` of a first URL, and then of a second one as a user whom mode bits bind, which they do not bind root."""

import os
import sys

from acp_store.cli.__main__ import main

if __name__ == "__main__":
    main(["db", "check", "--url", sys.argv[1]])  # everything is imported now, which that user may not do
    sys.stdout.flush()
    os.write(1, b"--\n")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    sys.exit(main(["db", "check", "--url", sys.argv[2]]))

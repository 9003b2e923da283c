"""kill -9 at moments that nobody chose."""

import random

_MOST = 6  # in one run: on a machine that has become slower it would never end


def kill_until_done(in_process, arguments, log, seconds, **how):
    """The moments at which a command was killed before it ended by itself; whole it takes ``seconds``."""
    killed = []
    while len(killed) < _MOST:
        moment = random.SystemRandom().uniform(0.1, 0.8) * seconds
        ended = in_process(arguments, log, seconds=moment, **how)
        if ended["status"] == 0:
            return killed
        assert ended["status"] == -9, log.read_text()
        killed.append(moment)
    ended = in_process(arguments, log, **how)
    assert ended["status"] == 0, log.read_text()
    return killed

"""What was captured: cameras, photos, sparse points, the world frame, the synthetic city."""

import signal
import threading

_before = signal.getsignal(signal.SIGTERM)

import pycolmap  # noqa: E402, F401

# Its import takes SIGTERM over: it would print a stack of machine code and end the process with nothing closed.
if _before is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _before)

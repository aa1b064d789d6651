"""A log file that several processes write and that none lets grow past its bound.

Named in the logging configurations of vLLM and LiteLLM. It runs inside the services, so it needs nothing but Python. The writers bound the
file themselves because nobody else can in time: a service that writes gigabytes within an hour meets no rotation by a timer. Nor does root
have to rename files in a folder that belongs to a service.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import logging.handlers
import os
from pathlib import Path


class BoundedFileHandler(logging.handlers.WatchedFileHandler):
    """Writes to `filename`; what it would make larger than `max_bytes` becomes `filename.1`, and so on up to `filename.KEPT` (at least 1).

    All together never exceed KEPT + 1 times `max_bytes`, and a record each. A file that somebody else moved away is made anew.
    """

    def __init__(self, filename: str, *, max_bytes: int, files_kept: int) -> None:
        self._max_bytes = max_bytes
        self._files_kept = files_kept
        super().__init__(filename, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; whatever goes wrong is told on standard error, and the service goes on."""
        try:
            self.reopenIfNeeded()
            if self.stream is not None and os.fstat(self.stream.fileno()).st_size >= self._max_bytes:
                self._rotate(self.stream.fileno())
        except OSError:
            self.handleError(record)
        logging.FileHandler.emit(self, record)

    def _rotate(self, file: int) -> None:
        # A lock of the process and not of the open file: vLLM's processes are forked and share the open file.
        fcntl.lockf(file, fcntl.LOCK_EX)
        # Another process may have been quicker; then the name stands for another file by now. It is missing only while one is renaming.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), Path(self.baseFilename).stat()):
                for number in range(self._files_kept, 0, -1):
                    newer = Path(f"{self.baseFilename}.{number - 1}" if number > 1 else self.baseFilename)
                    with contextlib.suppress(FileNotFoundError):
                        newer.rename(f"{self.baseFilename}.{number}")
        self.reopenIfNeeded()

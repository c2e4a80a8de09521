"""TensorBoard event files that are named by time alone, not by the host."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter


class EventFile:
    """One of TensorBoard's event files, named by the time alone.

    TensorBoard's own writer puts the name of the machine into the file's.

    Args:
        folder: Made if needed.
        suffix: Ends the file's name.
    """

    def __init__(self, folder: str, suffix: str) -> None:
        self._folder = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}{suffix}"
        self._records = RecordWriter((Path(folder) / name).open("xb"))
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        return self._folder

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


class _Events(FileWriter):
    """Writes what torch makes of scalars and images to an `EventFile`."""

    def __init__(self, folder: str, suffix: str) -> None:
        self.event_writer = EventFile(folder, suffix)


class Writer(SummaryWriter):
    """torch's `SummaryWriter` with files that do not tell on which machine they were written."""

    def _get_file_writer(self) -> FileWriter:
        writer: Any = self.file_writer
        if writer is None:
            writer = _Events(str(self.log_dir), self.filename_suffix)
            writers: Any = {self.log_dir: writer}
            self.file_writer, self.all_writers = writer, writers
            if self.purge_step is not None:  # readers drop what an earlier file has beyond it
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        found: FileWriter = writer
        return found

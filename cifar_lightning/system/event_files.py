"""TensorBoard event files that are named by time alone, not by the host."""

import time
from pathlib import Path
from typing import Any, cast

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter


class _EventFile(EventFileWriter):  # type: ignore[misc]  # TensorBoard has no types
    """TensorBoard's event file; TensorBoard would put the machine's name into the file's."""

    def __init__(self, folder: Path, suffix: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._logdir = str(folder)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}{suffix}"
        self._async_writer = RecordWriter((folder / name).open("xb"))
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()


class _FileWriter(FileWriter):
    """Writes what torch makes of scalars and images to an `_EventFile`."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.event_writer = _EventFile(folder, suffix)


class Writer(SummaryWriter):
    """torch's `SummaryWriter` with files that do not tell on which machine they were written."""

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            writer: Any = _FileWriter(Path(self.log_dir), self.filename_suffix)
            self.file_writer, self.all_writers = writer, cast("Any", {self.log_dir: writer})
            if self.purge_step is not None:  # readers drop what an earlier file has beyond it
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return cast("FileWriter", self.file_writer)

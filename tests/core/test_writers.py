import json
from contextlib import closing

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssql_det.core.errors import UserError
from ssql_det.core.writers import JsonWriter, TensorBoardWriter, Writers


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run):
    """(step, value) of the loss, as TensorBoard shows it."""
    return [(event.step, event.value) for event in EventAccumulator(str(run)).Reload().Scalars("loss")]


@pytest.fixture(params=[(JsonWriter, lines), (TensorBoardWriter, events)], ids=["JSON", "TensorBoard"])
def kind(request):
    return request.param


def write(writer, losses):
    with closing(Writers([writer])) as writers:
        for step, loss in losses:
            writers.write(step, {"loss": loss})


def test_a_line_of_json_for_each_step(tmp_path):
    write(JsonWriter(tmp_path / "new"), [(0, 0.1 + 0.2), (20, 1e-9)])
    assert lines(tmp_path / "new") == [{"step": 0, "loss": 0.1 + 0.2}, {"step": 20, "loss": 1e-9}]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = JsonWriter(tmp_path)
    writer.write(1, {"loss": 0.5, "lr": 0.1})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "lr": 0.1}]
    writer.close()


def test_events_can_be_read_back(tmp_path):
    write(TensorBoardWriter(tmp_path / "new"), [(0, 0.5), (20, 0.25)])
    assert events(tmp_path / "new") == [(0, 0.5), (20, 0.25)]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path, kind):
    writer, read = kind
    write(writer(tmp_path), [(step, 1.0) for step in (1, 2, 3, 4, 5)])
    write(writer(tmp_path, resume_step=3), [(4, 2.0), (5, 2.0)])
    history = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert read(tmp_path) in (history, [{"step": step, "loss": loss} for step, loss in history])


def test_a_run_that_starts_anew_starts_an_empty_file(tmp_path):
    write(JsonWriter(tmp_path), [(1, 1.0)])
    write(JsonWriter(tmp_path), [(1, 2.0)])
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("torn", "kept"),
    [(b'{"step": 2, "lo', [1]), (b'{"step": 2}', [1, 2]), (b"\n", [1]), (b"\xff\0", [1])],
    ids=["half a line", "a line without its end", "nothing", "what is no text"],
)
def test_a_resumed_run_drops_a_torn_line(tmp_path, torn, kept):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + torn)
    write(JsonWriter(tmp_path, resume_step=2), [(3, 2.0)])
    assert [line["step"] for line in lines(tmp_path)] == [*kept, 3]


@pytest.mark.parametrize("foreign", ["5", "[1]", '{"loss": 0.5}', '{"step": "one"}', "[" * 99999])
def test_a_history_of_something_else_is_not_gone_on_with(tmp_path, foreign):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{foreign}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl has a line without a step"):
        JsonWriter(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == f'{{"step": 1}}\n{foreign}\n'


def test_resuming_without_a_history_starts_one(tmp_path):
    write(JsonWriter(tmp_path / "new", resume_step=7), [(8, 1.0)])
    assert lines(tmp_path / "new") == [{"step": 8, "loss": 1.0}]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not write .*metrics\.jsonl"):
        JsonWriter(tmp_path / "file")


class Recorder:
    def __init__(self):
        self.calls = []

    def write(self, step, scalars):
        self.calls.append((step, scalars))

    def close(self):
        self.calls.append("closed")


def test_several_writers_are_written_and_closed_as_one():
    recorders = [Recorder(), Recorder()]
    with pytest.raises(ZeroDivisionError):
        write(Writers(recorders), ((step, 1 / (2 - step)) for step in (1, 2)))
    assert [recorder.calls for recorder in recorders] == [[(1, {"loss": 1.0}), "closed"]] * 2


def test_a_value_that_json_does_not_know_is_null(tmp_path):
    writer = JsonWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "scale": float("inf"), "lr": 0.5})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": None, "scale": None, "lr": 0.5}]

import json
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssql_det.core.errors import UserError
from ssql_det.core.scalar_writer import scalar_writer


def read_lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_events(run):
    """(step, value) of the loss, as TensorBoard reads them."""
    return [(event.step, event.value) for event in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss")]


def write_losses(run, losses, resume_step=None):
    with scalar_writer(run, resume_step) as write:
        for step, loss in losses:
            write(step, {"loss": loss})


def test_each_step_is_a_line_of_json_and_an_event(tmp_path):
    write_losses(tmp_path / "new", [(0, 0.1 + 0.2), (20, 0.25)])
    assert read_lines(tmp_path / "new") == [{"step": 0, "loss": 0.1 + 0.2}, {"step": 20, "loss": 0.25}]
    assert read_events(tmp_path / "new") == [(0, pytest.approx(0.3)), (20, 0.25)]


def test_a_line_is_on_disk_at_once(tmp_path):
    with scalar_writer(tmp_path) as write:
        write(1, {"loss": 0.5, "lr": 0.1})
        assert read_lines(tmp_path) == [{"step": 1, "loss": 0.5, "lr": 0.1}]


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("ssql_det.core.scalar_writer.is_main", lambda: False)
    write_losses(tmp_path / "new", [(0, 0.5)])
    assert not (tmp_path / "new").exists()


def test_a_resumed_run_drops_lines_and_events_after_its_checkpoint(tmp_path):
    write_losses(tmp_path, [(step, 1.0) for step in (1, 2, 3, 4, 5)])
    write_losses(tmp_path, [(4, 2.0), (5, 2.0)], resume_step=3)
    history = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert read_lines(tmp_path) == [{"step": step, "loss": loss} for step, loss in history]
    assert read_events(tmp_path) == history


def test_a_new_run_starts_an_empty_file(tmp_path):
    write_losses(tmp_path, [(1, 1.0)])
    write_losses(tmp_path, [(1, 2.0)])
    assert read_lines(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("truncated", "kept_steps"),
    [(b'{"step": 2, "lo', [1]), (b'{"step": 2}', [1, 2]), (b"\n", [1]), (b"\xff\0", [1])],
    ids=["half a line", "no line break", "empty line", "not UTF-8"],
)
def test_a_resumed_run_drops_a_truncated_line(tmp_path, truncated, kept_steps):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + truncated)
    write_losses(tmp_path, [(3, 2.0)], resume_step=2)
    assert [line["step"] for line in read_lines(tmp_path)] == [*kept_steps, 3]


@pytest.mark.parametrize(
    "foreign",
    [
        *("5", "[1]", '{"loss": 0.5}', '{"step": "one"}', "[" * 99999),
        *('{"step": true}', '{"step": 2, "loss": NaN}', '{"step": 2, "loss": "low"}', '{"step": 2, "step": 3}'),
    ],
)
def test_a_file_that_no_run_wrote_is_refused(tmp_path, foreign):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{foreign}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl has a line without a step"):
        write_losses(tmp_path, [], resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == f'{{"step": 1}}\n{foreign}\n'


def test_resuming_without_a_history_starts_one(tmp_path):
    write_losses(tmp_path / "new", [(8, 1.0)], resume_step=7)
    assert read_lines(tmp_path / "new") == [{"step": 8, "loss": 1.0}]


def test_an_impossible_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not write .*metrics\.jsonl"):
        write_losses(tmp_path / "file", [])
    with pytest.raises(UserError, match=r"TensorBoard cannot write to .*a\\udcff: the name is no text in this locale"):
        write_losses(tmp_path / os.fsdecode(b"a\xff"), [])


def test_a_value_that_is_not_finite_is_null(tmp_path):
    with scalar_writer(tmp_path) as write:
        write(1, {"loss": float("nan"), "scale": float("inf"), "lr": 0.5})
    assert read_lines(tmp_path) == [{"step": 1, "loss": None, "scale": None, "lr": 0.5}]

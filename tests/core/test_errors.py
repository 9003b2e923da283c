import pytest

from ssql_det.core.errors import UserError, did_you_mean, one_sentence


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("bits must be 2 to 16"), 2, "error: bits must be 2 to 16\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_an_exit_code(raised, code, said, capsys):
    with pytest.raises(SystemExit) as stopped, one_sentence():
        raise raised
    assert stopped.value.code == code
    assert capsys.readouterr() == ("", said)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_sentence():
        _ = 1 / 0


def test_a_typo_is_answered_with_the_nearest_name_or_with_nothing():
    assert did_you_mean("BASE_RL", ["SEED", "BASE_LR"]) == "; did you mean 'BASE_LR'?"
    assert did_you_mean("zebra", ["SEED", "BASE_LR"]) == ""


def test_the_machines_refusal_is_a_sentence_too(capsys):
    refusal = NotADirectoryError(20, "Not a directory", "/dev/null/absent")
    with pytest.raises(SystemExit) as stop, one_sentence():
        raise refusal
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: Not a directory: /dev/null/absent; check the path, its rights and the disk\n"

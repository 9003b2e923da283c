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

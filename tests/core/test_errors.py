import pytest

from ssql_det.core.errors import UserError, did_you_mean, reporting_errors


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("bits must be 2 to 16"), 2, "error: bits must be 2 to 16\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_an_exit_code(raised, code, said, capsys):
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        raise raised
    assert stopped.value.code == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("bug", [ZeroDivisionError("division by zero"), RuntimeError("shapes do not match")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), reporting_errors():
        raise bug


def test_a_typo_is_answered_with_the_nearest_name_or_with_nothing():
    assert did_you_mean("BASE_RL", ["SEED", "BASE_LR"]) == "; did you mean 'BASE_LR'?"
    assert did_you_mean("zebra", ["SEED", "BASE_LR"]) == ""


MACHINE = {
    "a path": (
        NotADirectoryError(20, "Not a directory", "/dev/null/absent"),
        "Not a directory: /dev/null/absent; check the path, its rights and the disk",
    ),
    "a path that plays tricks": (
        FileNotFoundError(2, "No such file or directory", "a\nerror: \x1b[31mb"),
        r"No such file or directory: a\nerror: \x1b[31mb; check the path, its rights and the disk",
    ),
    "the memory": (
        MemoryError(),
        "the memory does not suffice (it is used up); make images, batches or the network smaller",
    ),
    "the memory, as torch says it": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore"),
        "the memory does not suffice (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.); "
        "make images, batches or the network smaller",
    ),
}


@pytest.mark.parametrize(("refusal", "said"), MACHINE.values(), ids=MACHINE)
def test_the_machines_refusal_is_a_sentence_too(refusal, said, capsys):
    with pytest.raises(SystemExit) as stop, reporting_errors():
        raise refusal
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"

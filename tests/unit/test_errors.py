import pytest

from evoprompt.errors import DataError, EvopromptError, JudgeError, RecipeError, RunError, StartError, listed


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (RecipeError, ValueError, 2),
        (DataError, ValueError, 2),
        (JudgeError, ValueError, 2),
        (RunError, RuntimeError, 1),
        (StartError, RunError, 2),
    ],
)
def test_every_error_is_ours_and_a_builtin_one_and_knows_its_exit_code(kind, builtin, code):
    error = kind("what is wrong")
    assert isinstance(error, EvopromptError) and isinstance(error, builtin)
    assert (error.exit_code, str(error)) == (code, "what is wrong")


def test_listed_writes_the_first_problems_out_and_counts_the_rest():
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a; b"
    assert listed(list("abcde")) == "a; b; c; d; e"
    assert listed(list("abcdefg")) == "a; b; c; d; e and 2 more"
    assert listed(list("abc"), limit=1) == "a and 2 more"

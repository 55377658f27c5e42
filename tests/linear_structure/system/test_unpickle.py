"""What is particular to pickles of Python 2 is read where it is asked for, and nowhere else."""

import io
from typing import Any

import pytest

from linear_structure.system.unpickle import Malformed, evaluate


def value(program: bytes, **asked: Any) -> Any:
    data = b"\x80\x02" + program + b"."
    return evaluate(io.BytesIO(data), memoryview(data), {}, **asked)


PYTHON2 = {
    b"U\x02a\xff": "a\xff",
    b"T\x02\x00\x00\x00a\xff": "a\xff",
    b"]q\x01(K\x05K\x06e": [5, 6],
}


@pytest.mark.parametrize("program", PYTHON2)
def test_strings_and_memo_of_python_2_are_read_on_request_only(program):
    assert value(program, python2=True) == PYTHON2[program]
    with pytest.raises(Malformed):
        value(program)


@pytest.mark.parametrize("first", [0, 1])
def test_a_memo_gives_back_what_was_put_from_either_number_on(first):
    """A dict of one list that holds the dict's key."""
    dict_, key, list_ = (bytes([first + i]) for i in range(3))
    program = b"}q" + dict_ + b"U\x01aq" + key + b"]q" + list_ + b"h" + key + b"as"
    assert value(program, python2=True) == {"a": ["a"]}


@pytest.mark.parametrize("indices", [(0, 2), (1, 3), (1, 1), (2,), (1, 0)])
def test_memo_indices_count_up(indices):
    program = b"".join(b"]q" + bytes([index]) for index in indices)
    with pytest.raises(Malformed, match="memo index"):
        value(program, python2=True)


def test_the_number_of_opcodes_is_limited():
    assert value(b"]" + b"K\x01a" * 3, limit=9) == [1, 1, 1]
    with pytest.raises(Malformed, match="more than 8 opcodes"):
        value(b"]" + b"K\x01a" * 3, limit=8)

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.json_files import parse_json, read_json

INVALID = {
    "nothing": "",
    "half": '{"a": ',
    "two": "{}{}",
    "NaN": '{"a": [NaN]}',
    "infinity": "-Infinity",
    "a number beyond float64": "1e999",
    "a number of 5000 digits": "9" * 5000,
    "nested too deeply": "[" * 99999,
    "a key that is there twice": '[{"a": {"b": 1, "c": 2, "b": 1}}]',
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_every_mistake_is_a_value_error_and_in_a_file_a_sentence(text, tmp_path):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged; delete it$"):
        read_json(tmp_path / "a.json", "delete it")


@pytest.mark.parametrize("content", [b'{"a": [1, 2.5, null]}', b'\xef\xbb\xbf{"a":\r\n[1, 2.5, null]}\r\n'])
def test_what_json_allows_is_read(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json", "delete it") == {"a": [1, 2.5, None]}


def test_bytes_that_are_not_utf8_are_one_sentence(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"is damaged; delete it$"):
        read_json(tmp_path / "a.json", "delete it")

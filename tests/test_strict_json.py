"""A record's JSON is read strictly, whoever wrote it."""

from pathlib import Path

import pytest

from aal_bench import results, strict_json
from aal_bench.errors import UserError
from aal_bench.leaderboard.untrusted import read_json

REFUSED = {
    b"[" * 100_000: "nested too deep",
    b'{"a":' * 200_000: "nested too deep",
    b'{"a": ' * 40 + b"1" + b"}" * 40: "nested too deep",
    b'{"a": NaN}': "NaN is no number",
    b'{"a": 1e999}': "no finite number",
    b'{"a": 1, "a": 2}': "'a' occurs twice",
    b'{"a": "\\ud800"}': "lone surrogate",
    b"\xff{}": "not UTF-8",
    b"[]": "not a JSON object",
}


@pytest.mark.parametrize(
    ("content", "said"), REFUSED.items(), ids=lambda value: str(value)[:20].strip("b'")
)
@pytest.mark.parametrize("read", [results.read, read_json], ids=["a run's", "a stranger's"])
def test_a_record_is_refused_in_one_line_by_every_reader(tmp_path, content, said, read):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_sound_is_read_as_it_stands():
    content = '{"a": [1, 1.5, true, null, "Ö"]}'.encode()
    assert strict_json.parse(content, Path("a.json")) == {"a": [1, 1.5, True, None, "Ö"]}

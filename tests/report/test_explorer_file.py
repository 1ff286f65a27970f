"""Laws of the explorer's file: it holds what the exploration says, as text, and is the same twice."""

import base64
import gzip
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sae_lens_crosscoder.report import Exploration, write_explorer
from sae_lens_crosscoder.report.explorer.packing import LATENTS_PER_BLOCK
from tests.report.explorations import GROUPS, PLACE_COLUMNS
from tests.report.hostile_explorations import N, shown
from tests.report.made_up import HOSTILE, make_table


def element(source, name):
    """What an element of the page holds, unpacked."""
    (block,) = re.findall(f'<script type="application/gzip" id="{name}">([^<]*)</script>', source)
    return gzip.decompress(base64.b64decode(block))


def about_page(source):
    return json.loads(re.search('<script type="application/json" id="about">(.*?)</script>', source)[1])


def test_the_file_holds_every_number_of_the_table(explorations, path):
    source = path.read_text("utf-8")
    for about, exploration in zip(about_page(source)["crosscoders"], explorations.values(), strict=True):
        table = exploration.table
        columns = np.frombuffer(element(source, about["key"] + "-columns"), "<f4").reshape(-1, len(table))
        assert about["columns"] == list(table)
        for name, column in zip(about["columns"], columns, strict=True):
            if name in about["categories"]:
                assert [about["categories"][name][int(code)] for code in column] == table[name].tolist()
            else:
                np.testing.assert_array_equal(column, table[name].to_numpy(dtype="f4"))


def test_the_file_holds_every_record_and_tokens_once(explorations, path):
    source, exploration = path.read_text("utf-8"), explorations["l1"]
    texts = json.loads(element(source, "texts"))
    pool = element(source, "c0-tokens-0")
    n = len(pool) // 5
    ids, kl = np.frombuffer(pool[: 4 * n], "<u4"), np.frombuffer(pool[4 * n :], "u1")
    positions = set()
    for block in range(-(-len(exploration) // LATENTS_PER_BLOCK)):
        for i, packed in enumerate(json.loads(element(source, f"c0-latents-{block}"))):
            record = exploration[LATENTS_PER_BLOCK * block + i]
            assert tuple(packed["histogram"]) == record.histogram
            assert packed.get("contexts", 0) == record.n_contexts
            for group, place in zip(GROUPS, packed["places"], strict=True):
                expected = [record.places[group][column] for column in PLACE_COLUMNS]
                assert place == pytest.approx(expected, rel=1e-3)
            for model, flat in zip(("base", "chat"), packed["raises"], strict=True):
                assert [texts[text] for text in flat[::2]] == [shown(text) for text, _ in record.raises[model]]
                assert flat[1::2] == pytest.approx([value for _, value in record.raises[model]], rel=1e-3)
            expected = [*record.top, *(each for band in reversed(record.quantiles) for each in band)]
            found = [each for group in packed.get("examples", ()) for each in group]
            for (start, length, peak, prompt, position, _, alone), example in zip(found, expected, strict=True):
                codes = {i: code for i, code in enumerate(example.alone.tolist()) if max(code) > 0}
                assert alone[::3] == [*codes]
                for m in (0, 1):
                    assert alone[m + 1 :: 3] == pytest.approx([code[m] for code in codes.values()], rel=6e-3)
                assert (prompt, position, peak) == (
                    example.example.prompt,
                    example.example.position,
                    example.example.peak,
                )
                window = slice(start, start + length)
                assert [texts[text] for text in ids[window]] == [shown(text) for text in example.texts]
                assert kl[window] * 0.05 == pytest.approx(np.minimum(example.kl, 12.75), abs=0.026)
                first = 64 * prompt + position - peak
                positions |= set(range(first, first + length))
    assert n == len(positions)


def test_the_file_is_the_same_twice_and_names_its_script_and_style(explorations, path, tmp_path):
    source = path.read_text("utf-8")
    assert write_explorer(explorations, tmp_path / "again.html", title=HOSTILE).read_text("utf-8") == source
    policy = re.search('Content-Security-Policy" content="([^"]*)"', source)[1]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"\sstyle=|\son[a-z]+=\"|url\(|@import|fetch\(|localStorage|innerHTML", source)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", source)
    assert source.count("<script") == source.count("</script>") == 1 + len(re.findall("<script type", source))


def test_errors_say_what_does_not_fit(explorations):
    with pytest.raises(ValueError, match="`explorations` is empty"):
        write_explorer({}, "never.html")
    statistics = explorations["l1"].statistics
    with pytest.raises(ValueError, match="statistics: 3 latents, but the table has 1000"):
        Exploration(make_table(), statistics=replace(statistics, table=statistics.table[:3]))
    with pytest.raises(ValueError, match="pass the whole table"):
        Exploration(make_table().drop(columns="delta_norm"))
    with pytest.raises(IndexError, match="latents 0 to 199"):
        explorations["l1"][N]

"""Every snippet of README and docs runs, and every public name has a place in the reference."""

import re
from pathlib import Path

import jax
import pytest

import bregjax

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SNIPPETS = {
    str(page.relative_to(ROOT)): found
    for page in PAGES
    if (found := re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}


@pytest.mark.parametrize("page", SNIPPETS)
def test_the_snippets_of_a_page_run_one_after_the_other(page):
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"):
        for snippet in SNIPPETS[page]:
            exec(snippet, names)
    if "accuracy" in names:  # the first page's network learns, and is as sparse as was asked for
        assert names["accuracy"] > 0.9
        assert bregjax.sparsity_report(names["model"]).density == pytest.approx(0.05, abs=1e-3)


def test_every_public_name_is_in_the_reference():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md")]
    listed = re.findall(r"\.\. auto(?:function|class):: (\w+)", "\n".join(pages))
    public = {*bregjax.__all__, *bregjax.baselines.__all__} - {"baselines"}
    assert sorted(listed) == sorted(public)


def test_every_name_that_a_page_mentions_exists():
    for page in PAGES:
        for name in re.findall(r"bregjax\.(\w+)", page.read_text(encoding="utf-8")):
            assert hasattr(bregjax, name), (page, name)

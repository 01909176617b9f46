"""`make mutants` is not part of the tests, but its list stays true: every fault can still be made."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import ALGORITHMS, ROOT
from mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m['file']}: {m['fault']}")
def test_the_text_to_replace_occurs_once(mutant):
    assert (ROOT / "algorithms" / f"{mutant['file']}.py").read_text().count(mutant["text"]) == 1
    assert mutant["replacement"] != mutant["text"] and mutant["fault"]


def test_every_file_has_its_faults():
    assert min(Counter(m["file"] for m in MUTANTS)[name] for name in ALGORITHMS) >= 3

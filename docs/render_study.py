"""Writes explanation/study.md, its figures, and the marked part of how-to/choose-a-strategy.md from the kept study.

With a directory, keeps that study first.

python docs/render_study.py            from docs/study, which is kept in the repository
python docs/render_study.py DIR        keep the study of `outlast study --out DIR` in its place, thinned, then the same
"""

from __future__ import annotations

import sys
from pathlib import Path

from outlast_bench.study.analysis.cost import load_prices
from outlast_bench.study.page import docs_choice, tables
from outlast_bench.study.page.docs_page import markdown
from outlast_bench.study.page.keep import keep
from outlast_bench.study.page.page import assemble

DOCS = Path(__file__).resolve().parent


def write(docs: Path) -> list[Path]:
    """The page, its figures (PNG) and tables, from docs/study, and what another page says of it.

    Raises `StudyError` where there is no study, `ValueError` where that page has lost its marks.
    """
    kept, page, choice = docs / "study", docs / "explanation" / "study.md", docs / "how-to" / "choose-a-strategy.md"
    study = assemble(kept, load_prices())
    for problem in study.data.problems:
        print(f"left out: {problem}", file=sys.stderr)
    for picture in study.pictures:
        picture.files[1].unlink()  # the SVG: a repository needs one of the two
    written = [tables.write(table, kept / "tables") for table in study.tables]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(study, page), encoding="utf-8")
    choice.write_text(
        docs_choice.rewritten(choice.read_text(encoding="utf-8"), docs_choice.block(study.summary, choice))
    )
    return [*(picture.files[0] for picture in study.pictures), *written, choice, page]


def main() -> int:
    if sys.argv[1:]:
        size = keep(Path(sys.argv[1]), DOCS / "study", root=DOCS.parent)
        print(f"kept {sys.argv[1]} in {DOCS / 'study'}: {size / 1e6:.1f} MB")
    written = write(DOCS)
    print(f"wrote {len(written)} files; the page: {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

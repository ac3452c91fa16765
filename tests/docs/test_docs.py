"""Everything that README and docs show is run: Python blocks, and the flags of the program.

A page's Python blocks run one after the other in one namespace and an empty folder. An HTML comment
that begins with ``<!-- run:`` holds code that the page does not show, such as made-up inputs; a
block under ``<!-- not run: REASON -->`` is only compiled.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mast_ext import losses

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PIECE = re.compile(
    r"<!-- run:\n(?P<hidden>.*?)-->"
    r"|<!-- not run: (?P<reason>.+?) -->"
    r"|^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Block:
    """Code of a page.

    Attributes:
        language: What the fence says; ``python`` for code that is not shown.
        code: As it stands there, and as many empty lines before it, so that errors name its line.
        reason: Why it is not run.
    """

    language: str
    code: str
    reason: str | None = None


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    reason = None
    for piece in PIECE.finditer(text):
        if piece["reason"]:
            reason = piece["reason"]
            continue
        group = "code" if piece["hidden"] is None else "hidden"
        before = "\n" * text.count("\n", 0, piece.start(group))
        indent = piece["indent"] or ""
        code = re.sub(f"^{indent}", "", piece[group], flags=re.MULTILINE)
        yield Block(piece["language"] or "python", before + code, reason)
        reason = None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


PYTHON_PAGES = [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))]


@pytest.fixture
def environment_as_before():
    """A page may set variables, such as torchrun's, that would change what comes after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch, environment_as_before):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for block in blocks_of(page):
        if block.language == "python":
            compiled = compile(block.code, page, "exec")
            if block.reason is None:
                exec(compiled, namespace)


def test_few_blocks_are_not_run():
    left_out = [block.reason for page in PAGES for block in blocks_of(page) if block.reason]
    assert len(left_out) <= 2, left_out


def commands_of(page: Path) -> Iterator[list[str]]:
    """Calls of the program in a page's shell blocks, without what starts it."""
    for block in blocks_of(page):
        if block.language != "bash":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "mast-ext" in words:
                yield words[words.index("mast-ext") + 1 :]


COMMANDS = [
    pytest.param(command, id=f"{name_of(page)}: {' '.join(command)}")
    for page in PAGES
    for command in commands_of(page)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_program_knows_the_flags(command, capsys):
    main = pytest.importorskip("mast_ext.cli.main").main
    name, *options = command
    if "--help" in options:
        assert main(command) == 0
        return
    if ">" in options:
        del options[options.index(">") :]
    if "--config" in options:  # a file of the reader's
        at = options.index("--config")
        del options[at : at + 2]
    if name == "pretrain" and "--resume" not in options:
        with pytest.raises(SystemExit) as ended:
            main([name, *options, "--print_config"])
        assert ended.value.code == 0
        return
    command_words = [name, options[0]] if name == "bench" else [name]
    try:
        assert main([*command_words, "--help"]) == 0
    except SystemExit as ended:
        assert ended.code == 0
    known = capsys.readouterr().out
    for option in options:
        if option.startswith("-"):
            assert option in known


def test_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().split()) < 900


RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", *RESULTS], ids=name_of)
def test_relative_links_lead_to_files_of_the_repository(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    for page, kind, shown in (
        ("performance", "plot", "mast_ext"),
        ("hard-views", "gains", "4 views"),
        ("equimod", "gains", "EquiMod"),
    ):
        html = (tmp_path / page / "index.html").read_text()
        plots = re.findall(r'<img [^>]*src="([^"]+\.svg)"', html)
        source = (ROOT / "docs" / f"{page}.md").read_text()
        assert len(plots) == source.count(f"<!-- {kind}: ") > 0
        for plot in plots:
            assert shown in (tmp_path / page / plot).read_text()


def test_page_of_losses_has_every_class():
    named = re.findall(r"`(\w+)`", (ROOT / "docs" / "losses.md").read_text())
    assert set(losses.__all__) - {"MASTTerms"} <= set(named)


def test_page_of_the_program_lists_every_recipe():
    recipes = pytest.importorskip("mast_ext.train.recipes")
    page = (ROOT / "docs" / "program.md").read_text()
    for name in recipes.RECIPES:
        methods = ", ".join(f"`{method}`" for method in recipes.methods_of(name))
        assert f"| `{name}` | {methods} |" in page

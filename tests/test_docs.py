"""The documents are true to the repository: links, paths, and the commands with their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from animatediff_lightning.distill.cli import program

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = (
    "benchmarks",
    "distill",
    "docs",
    "locales",
    "motion_module",
    "nodes",
    "samplers",
    "tests",
    "video",
    "web",
    "workflows",
)
PROGRAMS = ("animatediff-lightning", "animatediff_lightning.distill")
END_OF_COMMAND = {";", "&&", "|", "}"}
OPTIONS_OF_OTHER_PROGRAMS = {"--shutdown-timeout"}  # of torchrun

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def without_blocks(text: str) -> str:
    """Return a document's text without its code blocks."""
    return FENCE.sub("", text)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(without_blocks(document.read_text()))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def inline_code(document: Path) -> list[str]:
    """Return the code spans of a document's text."""
    return INLINE_CODE.findall(without_blocks(document.read_text()))


def shell_lines(document: Path) -> Iterator[list[str]]:
    """Yield the words of every shell command that a document shows in a block."""
    for language, block in FENCE.findall(document.read_text()):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                yield shlex.split(line.replace(";", " ; "), comments=True)


def named_paths(document: Path) -> Iterator[str]:
    """Yield every path of the repository that a document names in code."""
    words = [word for line in shell_lines(document) for word in line]
    for text in (*inline_code(document), *words):
        if text.partition("/")[0] in FOLDERS and "/" in text:
            yield text


def invocations(document: Path) -> Iterator[list[str]]:
    """Yield the arguments of every call of the program that a document shows."""
    spans = [shlex.split(s) for s in inline_code(document) if s.startswith(PROGRAMS[0])]
    for words in (*shell_lines(document), *spans):
        for place, word in enumerate(words):
            if word.rpartition("/")[2] in PROGRAMS:
                rest = words[place + 1 :]
                end = next((n for n, w in enumerate(rest) if w in END_OF_COMMAND), len(rest))
                yield rest[:end]


def check_arguments(arguments: list[str]) -> None:
    """Fail unless a command of the program takes these arguments, by names and by number."""
    command, words = typer.main.get_command(program.app), list(arguments)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name} in {arguments}"
        command = command.commands[name]
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    places = sum(p.param_type_name == "argument" for p in command.params)
    while words:
        name, equals, _ = words.pop(0).partition("=")
        if not name.startswith("--"):
            places -= name != "$@"
            continue
        assert name in options or name == "--help", f"no option {name} in {arguments}"
        if name in options and not options[name].is_flag and not equals:
            assert words, f"no value after {name} in {arguments}"
            words.pop(0)
    assert places >= 0, f"too many words in {arguments}"


def all_options(command: object) -> set[str]:
    """Return the names of the options of a command and of all below it."""
    names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    below = getattr(command, "commands", {}).values()
    return names.union({"--help"}, *(all_options(c) for c in below))


@each_document
def test_every_link_leads_somewhere(document):
    for target in LINK.findall(without_blocks(document.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{target} is no heading"


@each_document
def test_every_named_path_exists(document):
    for path in named_paths(document):
        assert (ROOT / path).exists() or list(ROOT.glob(path)), f"{path} does not exist"


@each_document
def test_every_command_takes_its_arguments(document):
    for arguments in invocations(document):
        check_arguments(arguments)


def test_every_option_in_the_text_is_one_of_the_program():
    options = all_options(typer.main.get_command(program.app)) | OPTIONS_OF_OTHER_PROGRAMS
    for document in (ROOT / "docs").glob("*.md"):
        words = [word for span in inline_code(document) for word in span.split()]
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= options, f"{document.name} names {named - options}"


def test_the_documents_show_commands_of_every_kind():
    shown = [" ".join(a) for document in DOCUMENTS for a in invocations(document)]
    for command in ("generate", "inspect", "data import", "train", "miniature picture"):
        assert any(line.startswith(command) for line in shown), command


@pytest.mark.parametrize(
    "line", ["draw", "data draw", "generate --no-such 1", "generate --steps", "inspect a b"]
)
def test_a_wrong_command_is_noticed(line):
    with pytest.raises(AssertionError):
        check_arguments(line.split())


def test_the_readme_has_the_test_command_that_the_ci_reads():
    marked = re.search(r"^<!-- test command -->\n```bash\n(.+)\n```$", README, re.MULTILINE)
    assert marked is not None
    assert marked[1].endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")

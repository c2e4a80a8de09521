"""Text of files, made harmless for whoever reads it next: one function for each reader.

Ids, class names, file names, reasons and errors can come from other people's files. Records keep
them as they are; what writes them for a reader escapes them, and shows the rest unchanged.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

# What a terminal obeys instead of showing: C0 with ESC, DEL, C1, marks that change the direction of
# writing, the two other line ends, and halves of surrogate pairs, which stand for bytes of a file
# name that are no UTF-8. Tab and line feed are kept where a text may have several lines.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_CONTROL_OR_BREAK = re.compile(f"[\\t\\n]|{_CONTROL.pattern}")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def _code(match: re.Match[str]) -> str:
    character = match.group()
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that could not be decoded
        return f"\\x{number - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def visible(text: object) -> str:
    r"""Show control characters of a name or a reason as ``\x1b``; the result is one line."""
    return _CONTROL_OR_BREAK.sub(_code, str(text))


def terminal(text: str) -> str:
    """Show control characters of a text of several lines; tabs and line feeds stay."""
    return _CONTROL.sub(_code, text)


# User and password, then what follows the path; each may be a token. A password may hold a slash,
# but a number and a slash are a port and a path.
_ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]*://)"
    r"(?:[^\s/?#]*@|[^\s/?#:]*:(?!\d+/)[^\s?#@]*@)?"
    r"([^\s?#,;\]]*)(?:[?#]\S*)?",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Show of each address in a text its scheme, host and path: the rest may be a password."""
    return _ADDRESS.sub(r"\1\2", text)


class LogFormatter(logging.Formatter):
    """Escapes every message for a terminal.

    A message is one line, whatever the names in it; a text of ours of several lines, such as a
    table, begins with a line feed.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        if not str(record.msg).startswith("\n"):
            record.message = visible(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return terminal(super().format(record))


# A tag, a comment, an address, an entity. No backslash: not every Markdown reader takes one here.
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}

# What CommonMark, and GitHub's struck-out text, formulas and bare addresses, would read as
# markup. Underlines within a word, as in `channels_last`, are none.
_MARKUP = re.compile(
    r"""
    \\(?=[!-/:-@\[-`{-~]|$)             # a backslash before punctuation
    | [`*$]
    | (?<![^\W_])_+ | _+(?![^\W_])
    | (?<=\S)~+ | ~+(?=\S)
    | \](?=[(\[])                       # a link's middle
    | !(?=\[)
    | :(?=//) | (?<=\bwww)\.
    """,
    re.VERBOSE,
)

# And at the beginning of a line: headings, quotations, lists, rules, boxes to tick, definitions.
# It ends where a backslash belongs; in a numbered list, that is before the point.
_MARKUP_AT_BEGINNING = re.compile(
    r"^\s*(?:(?=[#>]|[-+]\s+\S|--|==|\[(?:[ xX]\]|\^|.*\]:))|\d{1,9}(?=[.)]\s))"
)


def markdown(text: object) -> str:
    """Escape a sentence so that a Markdown reader shows it as it is."""
    line = visible(text)
    escaped = _MARKUP.sub(lambda match: "".join(f"\\{sign}" for sign in match.group()), line)
    escaped = _HTML.sub(lambda match: _ENTITIES[match.group()], escaped)
    return _MARKUP_AT_BEGINNING.sub(r"\g<0>\\", escaped)


def markdown_cell(text: object) -> str:
    """Escape a cell of a table."""
    return markdown(text).replace("|", r"\|")


def markdown_code(text: object) -> str:
    """Set a name in a code span; one with a backtick becomes escaped text."""
    line = visible(text)
    return markdown(line) if "`" in line or not line.strip() else f"`{line}`"


def markdown_block(text: str, language: str) -> str:
    """Fence a text of several lines, however many backticks it holds."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{terminal(text).rstrip()}\n{fence}"


# What LaTeX obeys. Braces keep a bracket or star from being the argument of a line's end, and signs
# from joining to another one, as two hyphens do.
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "[": "{[}", "]": "{]}", "*": "{*}", '"': "{\"}",
} | {sign: f"\\{sign}" for sign in "{}$&#_%"}  # fmt: skip
_JOINING = re.compile(r"(?<=[-'`,?!])(?=[-'`,])")


def latex(text: object) -> str:
    """Escape a sentence or a cell so that LaTeX shows it as it is."""
    line = _JOINING.sub("\0", visible(text))
    return "".join(_LATEX.get(sign, sign) for sign in line).replace("\0", "{}")


def csv_cell(value: Any) -> Any:
    """Make a CSV cell that no spreadsheet computes; numbers stay numbers.

    An apostrophe before what would begin a formula is what OWASP's page on CSV injection advises.
    """
    if not isinstance(value, str):
        return value
    cell = visible(value)
    if len(cell.strip()) < 2 or not cell.lstrip().startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def render(template: str, shown: Callable[[str], str], values: Mapping[str, object]) -> str:
    """Fill in a template; what is not `Markup` is text, names of other people's among it.

    Args:
        template: Its path in the package; in a ``.html.jinja``, text is escaped for HTML as well.
        shown: Escapes a text.
        values: What the template names.
    """
    import jinja2
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_lightning", "."),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
    )
    return templates.get_template(template).render(values)

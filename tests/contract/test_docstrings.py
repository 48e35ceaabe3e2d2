"""Every public name says what it takes and what it refuses: the reference of the site is made of docstrings."""

import ast
import inspect
import re
import textwrap

from site_api import documented, function_of, members, public
from site_markdown import markdown, signature

import mpgraph as mg

PASS = re.compile(r"_(update|message)(_to_\w+)?$")


def raised(function):
    """Errors of the family that the body of a function raises itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # the constructor of a dataclass
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(getattr(node.exc.func, "id", getattr(node.exc.func, "attr", "")))
    return {name for name in names if isinstance(getattr(mg, name, None), type)}


def arguments(function):
    kinds = inspect.signature(function).parameters.values()
    return [one.name for one in kinds if one.name not in ("self", "cls") and not one.name.startswith("_")]


def lacks(function, text, *, all_arguments):
    """What a docstring does not say."""
    if not text:
        return ["a docstring"]
    told = text.partition("Raises:")[2]
    missing = [f"{name} under Raises:" for name in sorted(raised(function)) if name not in told]
    for name in arguments(function) if all_arguments else ():
        if not re.search(rf"^\s*(\w+, )*\*{{0,2}}{name}(, \w+)*:|``[^`]*\b{name}\b[^`]*``", text, re.MULTILINE):
            missing.append(f"argument {name}")
    return missing


def everything():
    """Name, function, docstring and whether each argument must be told, of all that is public."""
    for one in public():
        text = inspect.getdoc(one.thing) or ""
        if inspect.isfunction(one.thing):
            yield one.name, one.thing, text, True
        elif isinstance(one.thing, type):
            made = vars(one.thing).get("__init__")
            if inspect.isfunction(made) and not issubclass(one.thing, mg.Protocol):  # a rule's are made of its options
                yield one.name, made, text, True
            for name, member in members(one.thing):
                function = function_of(member)
                every = one.thing is mg.View and not isinstance(member, property)
                own = documented(member)
                yield f"{one.name}.{name}", function, own and own + text, every  # a class may say what a method refuses


def test_public_names_say_what_they_take_and_refuse():
    found = {
        name: missing
        for name, function, text, every in everything()
        if not PASS.search(name) and (missing := lacks(function, text, all_arguments=every))
    }
    assert not found, "\n".join(f"{name} lacks {', '.join(missing)}" for name, missing in found.items())
    assert all(inspect.getdoc(one.thing) for one in public())


def test_a_docstring_that_says_too_little_is_found():
    def bad(size, rate):
        """Something of ``size``."""
        raise mg.InputError("no")

    assert lacks(bad, bad.__doc__, all_arguments=True) == ["InputError under Raises:", "argument rate"]
    assert lacks(bad, "", all_arguments=False) == ["a docstring"]


def test_options_of_rules_are_told():
    for one in public():
        if one.module == "mpgraph.protocols" and issubclass(one.thing, mg.Protocol):
            for name, option in one.thing.declared.items():
                assert option.doc, f"{one.name}: option {name} has no text"
                assert re.search(rf"^\s*{name}: ", one.thing.__doc__, re.MULTILINE), f"{one.name}.{name}"


def test_docstrings_become_markdown():
    text = textwrap.dedent(
        """\
        Sends ``<x y>``, as :meth:`mpgraph.Agent.readout`, for a <b>.

            w <- w - lr <e x>

        Args:
            lr: a rate, by
                default ``0.1``.

        Raises:
            InputError: for others.
        """
    )
    assert markdown(text, {"Agent.readout": "agents.md#Agent.readout"}) == (
        "Sends `<x y>`, as [`Agent.readout`](agents.md#Agent.readout), for a &lt;b>.\n\n"
        "    w <- w - lr <e x>\n\n"
        "**Arguments**\n\n- `lr`: a rate, by default `0.1`.\n\n"
        "**Raises**\n\n- `InputError`: for others.\n"
    )


def test_signatures_are_python():
    for one in public():
        if inspect.isfunction(one.thing):
            ast.parse(f"def {signature(one.name, one.thing)}: ...")
    assert signature("f", lambda a, *, b=len: a) == "f(a, *, b=len)"

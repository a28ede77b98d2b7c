"""A command with two or more forms: which options belong to which, in its help and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource


class FormOption(click.Option):
    """An option that belongs to some forms of its command.

    Args:
        forms: Names of these forms, keys of `FormsCommand.forms`.
    """

    def __init__(self, *words: Any, forms: Sequence[str], **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.forms = forms


class FormsCommand(click.Command):
    """A command whose help lists the options of each form apart.

    Args:
        forms: What each form is for, by its name. Options that are no `FormOption` belong to all.
    """

    def __init__(self, *words: Any, forms: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.forms = forms

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per form, then the options of all forms."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        sections: dict[str, Sequence[click.Option]] = {
            title: [o for o in options if isinstance(o, FormOption) and form in o.forms]
            for form, title in self.forms.items()
        }
        sections["Always"] = [o for o in options if not isinstance(o, FormOption)]
        for title, members in sections.items():
            with formatter.section(title):
                records = [option.get_help_record(ctx) for option in members]
                formatter.write_dl([record for record in records if record is not None])


def given_elsewhere(ctx: click.Context, form: str) -> str | None:
    """Return the first option on the command line that does not belong to ``form``, if any."""
    for parameter in ctx.command.params:
        is_given = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if is_given and isinstance(parameter, FormOption) and form not in parameter.forms:
            return parameter.opts[0]
    return None


def check_form(form: str, message: str) -> None:
    """Refuse an option of another form; ``message`` has a place for its name.

    Raises:
        click.UsageError: If one was given.
    """
    if option := given_elsewhere(click.get_current_context(), form):
        raise click.UsageError(message.format(option))

"""Fault: ``generate_leaderboard`` of robustbench 1.1.1 raises ``TemplateNotFound``.

``robustbench/leaderboard/template.py`` loads ``leaderboard.html.j2`` from its own package, but
the file is in neither the wheel nor the sdist (package data is not declared); it exists in the
git repository RobustBench/robustbench only.

Repair: a small template of our own behind robustbench's loader, so that upstream's file wins as
soon as it is shipped. The column "robust accuracy" is the figure that robustbench sorts by:
``external`` (the best known attack) where a record has it, AutoAttack's otherwise.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

from aal_bench.toolkits import robustbench_import

NAME = "leaderboard.html.j2"

# robustbench's environment escapes *.html and *.xml only, and this name ends in .j2
TEMPLATE = """\
{% autoescape true %}
<table id="leaderboard" class="datatable">
  <thead>
    <tr>
      <th>Rank</th><th>Method</th><th>Standard accuracy</th><th>Robust accuracy</th>
      <th>Extra data</th><th>Architecture</th><th>Venue</th>
    </tr>
  </thead>
  <tbody>
  {%- for model in models %}
    <tr>
      <td>{{ loop.index }}</td>
      <td>
        {%- if (model.link or "").startswith(("https://", "http://")) -%}
          <a href="{{ model.link }}">{{ model.name }}</a>
        {%- else -%}
          {{ model.name }}
        {%- endif -%}
        {%- if model.footnote %}<br><small>{{ model.footnote }}</small>{% endif -%}
      </td>
      <td>{{ model.clean_acc }} %</td>
      <td>{{ model.external if model.external is defined else model[acc_field] }} %</td>
      <td>{{ "yes" if model.additional_data else "no" }}</td>
      <td>{{ model.architecture }}</td>
      <td>{{ model.venue }}</td>
    </tr>
  {%- endfor %}
  </tbody>
</table>
{% endautoescape %}
"""


def fault_present() -> bool:
    """Whether robustbench is installed without its template, and not repaired yet."""
    spec = find_spec("robustbench")
    if spec is None or not spec.submodule_search_locations:
        return False
    folders = [Path(place) / "leaderboard" for place in spec.submodule_search_locations]
    if any((folder / NAME).is_file() for folder in folders):
        return False
    robustbench_import.repair()
    module = importlib.import_module("robustbench.leaderboard.template")
    return not getattr(module.PackageLoader, "has_template", False)


def repair() -> None:
    """Let ``generate_leaderboard`` fall back to our template."""
    if not fault_present():
        return
    from jinja2 import BaseLoader, ChoiceLoader, DictLoader

    module = importlib.import_module("robustbench.leaderboard.template")
    original = module.PackageLoader

    def with_template(*args: str, **options: str) -> BaseLoader:
        return ChoiceLoader([original(*args, **options), DictLoader({NAME: TEMPLATE})])

    with_template.has_template = True  # pyright: ignore[reportFunctionMemberAccess]
    vars(module)["PackageLoader"] = with_template

"""Shows how a lead file was read, before anything is written."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from campaign_pipeline.leads.reading import LeadsFile

SHOWN_PROBLEMS = 20


def show_reading(console: Console, file_name: str, read: LeadsFile, most_problems: int | None = SHOWN_PROBLEMS) -> None:
    """Print how a file was read, the field of each column, and each row that was left out with line and reason."""
    tool = f" It looks like an export of {read.tool}." if read.tool else ""
    console.print(Text(f"{file_name} was read as {read.how}.{tool}"))
    table = Table("Field", "Column", "First value", title="Columns", title_justify="left", show_edge=False)
    for name, columns, value in read.mapping:
        table.add_row(name, Text(columns), Text(value))
    console.print(table)
    console.print(Text('Another column for a field: --map phone="Telefone 2". All other columns are custom fields.'))
    for note in read.notes:
        console.print(Text(note, style="yellow"))
    shown = read.problems if most_problems is None else read.problems[:most_problems]
    for problem in shown:
        column = f" ({problem.column})" if problem.column else ""
        console.print(Text(f"{file_name}, line {problem.line}{column}: {problem.message}", style="yellow"))
    if len(shown) < len(read.problems):
        rest = len(read.problems) - len(shown)
        console.print(Text(f"… and {rest} more problems: `campaign-pipeline leads` lists all.", style="yellow"))
    if read.problems:
        rows = len({problem.line for problem in read.problems})
        console.print(Text(f"{rows} rows were left out; the others are used.", style="yellow"))

"""The report of ``segx plan``."""

from __future__ import annotations

import dataclasses
from typing import Any

from segx.analysis.capacity import Basis, CapacityPlan, Fleet, name_of
from segx.analysis.recommend import Constraints
from segx.analysis.stats import Interval
from segx.reporting.columns import Field, counted, digits, figures, machine_name, seconds, table_of, verdict, words
from segx.reporting.document import NONE, Block, Bullets, Column, Datum, Document, Facts, Paragraph, Section, Table
from segx.reporting.prose import limits
from segx.results.types import Results
from segx.runtimes import runtime_info

_MARKS: dict[Basis, str] = {"measured": "", "estimated": "≈", "forward": "≤"}
_LEADS: dict[Basis, str] = {"measured": "", "estimated": "About ", "forward": "At least "}


def capacity_document(plan: CapacityPlan, results: Results) -> Document:
    """Say which variant needs the fewest machines, show all, and name what is assumed."""
    demand = plan.demand
    facts = [
        ("images", f"{demand.images:,}, each like those of the bench ({results.model.spec.preprocessing})"),
        ("deadline", _duration(demand.deadline_s / 3600)),
        ("machine", f"{machine_name(results)}; measured {results.created[:10]}"),
    ]
    if demand.cores is not None:
        facts.append(("planned", f"machines of {counted(demand.cores, 'core')}"))
    if demand.price_per_hour is not None:
        facts.append(("price", f"{_price(demand.price_per_hour)} per machine and hour"))
    facts += [("limits", limit) for limit in limits(Constraints(require=demand.require))]
    blocks: list[Block] = [_table(plan, results)] if plan.fleets else []
    decision = Section(key="decision", lead=True, blocks=(Paragraph(_decision(plan, results), "strong"),))
    assumed = Section(key="assumptions", title="Assumptions", blocks=(Bullets(_assumptions(plan)),))
    fleets = Section(key="fleets", title="Variants whose masks passed, fewest machines first", blocks=tuple(blocks))
    return Document.of("segx plan", facts, (decision, fleets, *([assumed] if plan.fleets else [])))


def plan_section(plan: CapacityPlan, results: Results) -> Section:
    """Return the same as a section of the bench's page."""
    document = capacity_document(plan, results)
    blocks = (*document.blocks("decision"), Facts(document.facts), *document.blocks("fleets", "assumptions"))
    return Section(key="plan", title=f"Plan for {plan.demand.images:,} images", blocks=blocks)


def capacity_data(plan: CapacityPlan) -> dict[str, Any]:
    """Return a plan as plain data."""
    fleets = [
        {
            "variant": name_of(fleet.cell),
            "batch_size": fleet.cell.batch_size,
            **{
                field.name: value
                for field in dataclasses.fields(fleet)
                if not isinstance(value := getattr(fleet, field.name), Interval) and field.name != "cell"
            },
            "interval": fleet.interval and [fleet.interval.low, fleet.interval.high],
        }
        for fleet in plan.fleets
    ]
    return {
        "demand": dataclasses.asdict(plan.demand),
        "fleets": fleets,
        "files_s": plan.files_s,
        "scale": plan.scale,
        "assumptions": _assumptions(plan),
    }


def _decision(plan: CapacityPlan, results: Results) -> str:
    fleet = next((fleet for fleet in plan.fleets if fleet.machines), None)
    if fleet is None:
        return (
            "No variant meets the deadline: starting and segmenting one image take longer."
            if plan.fleets
            else f"No variant can be planned with: {_why_none(plan, results)}."
        )
    assert fleet.machines
    low, high = fleet.machines_range or (fleet.machines, fleet.machines)
    machines = counted(fleet.machines, "machine") if low == high else f"{low:,} to {high:,} machines"
    said = f"{_LEADS[fleet.basis]}{machines} with {name_of(fleet.cell)}, batch {fleet.cell.batch_size}: "
    said += _duration(fleet.hours or 0.0) + (f" with {fleet.machines:,}" if low != high else "")
    said += f", price {digits(fleet.price)}" if fleet.price is not None else ""
    return f"{said}; masks: {verdict(results, fleet.cell).text}."


def _why_none(plan: CapacityPlan, results: Results) -> str:
    if not any(cell.measured for cell in results.cells):
        return "no cell was measured"
    return "none was measured in full with masks that " + ("meet the requirement" if plan.demand.require else "passed")


def _price(of_an_hour: float) -> str:
    """Return a price with two places, or with more if it has them."""
    rounded = f"{of_an_hour:,.2f}"
    return rounded if float(rounded.replace(",", "")) == of_an_hour else f"{of_an_hour:,}"


def _duration(hours: float) -> str:
    return f"{digits(hours)} h" if hours >= 1 else seconds(hours * 3600)


def _table(plan: CapacityPlan, results: Results) -> Table:
    def rate(fleet: Fleet) -> Datum:
        found = 1 / fleet.seconds_per_image
        return Datum(f"{_MARKS[fleet.basis]}{digits(found)}", found)

    def machines(fleet: Fleet) -> Datum:
        if not fleet.machines:
            return NONE
        low, high = fleet.machines_range or (fleet.machines, fleet.machines)
        spread = "" if low == high else f" ({low:,}–{high:,})"
        return Datum(f"{fleet.machines:,}{spread}", float(fleet.machines))

    fields: list[Field[Fleet]] = [
        words("variant", lambda fleet: name_of(fleet.cell)),
        figures("batch", lambda fleet: fleet.cell.batch_size, form="{}"),
        (Column("images/s", about="of one machine; ≈: estimated, ≤: without reading and writing files"), rate),
        (Column("machines", about="the range is that of the measurement's 95% interval"), machines),
        figures("hours", lambda fleet: fleet.hours),
    ]
    if plan.demand.price_per_hour is not None:
        fields.append(figures("price", lambda fleet: fleet.price))
    fields.append((Column("masks", numeric=False), lambda fleet: verdict(results, fleet.cell)))
    return table_of("", plan.fleets, fields)


def _assumptions(plan: CapacityPlan) -> tuple[str, ...]:
    bases = {fleet.basis for fleet in plan.fleets}
    lines = []
    if "measured" in bases:
        lines.append(
            "Measured from image file to mask file, on the disk of the bench; storage elsewhere may be slower."
        )
    if "estimated" in bases:
        lines.append(
            f"≈: the forward time and {digits((plan.files_s or 0.0) * 1e3)} ms per image to read and write files, the "
            "most that this added to a variant of this bench."
        )
    if "forward" in bases:
        lines.append(
            "≤: reading and writing files is not in these times. Measure it: segx bench --scope forward,pipeline."
        )
    if plan.demand.cores is not None and any(runtime_info(f.cell.runtime).device == "cpu" for f in plan.fleets):
        lines.append(
            f"The time on a CPU is multiplied by {plan.scale:.3g}, in inverse proportion to the cores, which was not "
            "measured: bench on a machine of the kind you plan with."
        )
    if unknown := [name_of(fleet.cell) for fleet in plan.fleets if fleet.start_s is None]:
        lines.append(f"The start of a machine takes no time: it was not measured for {', '.join(unknown)}.")
    lines += [
        "Images are split evenly, each machine starts once and runs one process, and none fails.",
        "Ranges cover the noise within the bench; machines of one kind often differ by 10 to 20% from hour to hour.",
    ]
    return tuple(lines)

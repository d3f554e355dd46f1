"""``casemate boot-chart``: where the time of a start goes, as text and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli import output, values
from casemate.errors import HostError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.vm.boot_chart.run import Seen

USAGE = "[OPTIONS]"


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("--guest", metavar="DIGEST", default="", help="the guest bundle (default: the current one)")
    parser.value("-m", "--memory", metavar="SIZE", help="the guest's memory (default: the configuration's)")
    parser.value("--runs", metavar="N", type=int, default=1, help="how many starts; the one in the middle is shown")
    parser.flag("--initcalls", help="have the kernel say how long its initialisers take, which makes it slower")
    parser.values("--append", metavar="WORD", help="one more argument for the kernel")
    parser.value("--svg", metavar="FILE", help="write a picture too")
    parser.flag("--json", help="as JSON: phases with begin and end in milliseconds")


def run(config: Config, args: Any) -> int:
    """Measure, and show it."""
    if not 1 <= args.runs <= 1000:
        raise UsageError(f"--runs {args.runs} is out of bounds", "give 1 to 1000")
    from casemate.vm import guest
    from casemate.vm.boot_chart import phases, svg, text
    from casemate.vm.boot_chart.run import measure

    if args.guest:
        found = [bundle for bundle in guest.list_bundles(config.root) if bundle.digest.startswith(args.guest)]
        if len(found) != 1:
            raise UsageError(f"{len(found)} guest bundles begin with {args.guest}", "see: casemate guest list")
        config = replace(config, guest=found[0].digest)
    bundle = guest.find(config.root, config.guest)
    memory = values.memory(args.memory, config.memory_minimum) if args.memory is not None else config.memory
    append = [*args.append, *(("initcall_debug", "log_buf_len=1M") if args.initcalls else ())]
    seen: list[Seen] = []
    with output.Steps(plain=False) as steps:
        for number in range(args.runs):
            steps(f"start {number + 1} of {args.runs}")
            seen.append(measure(config, memory_mib=memory, append=append))
    seen.sort(key=phases.hello)
    middle = seen[len(seen) // 2]
    title = f"{bundle.kernel_release}, {middle.facts.get('accelerator')}, {memory} MiB, {config.vcpus} CPU"
    if len(seen) > 1:
        title += f": middle of {len(seen)}, hello after {phases.hello(seen[0]):.0f} to {phases.hello(seen[-1]):.0f} ms"
    chart = phases.chart(middle, title)
    print(json.dumps(asdict(chart), indent=4) if args.json else text.render(chart))
    if args.svg:
        try:
            Path(args.svg).write_text(svg.render(chart))
        except OSError as error:
            raise HostError(f"cannot write {args.svg}: {error.strerror}") from None
    return 0
